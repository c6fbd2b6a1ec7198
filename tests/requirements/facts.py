"""The checkable facts of the requester's document, copied.

``test_document.py`` holds this copy against the document itself wherever that is present; the other
tests hold the product against this copy.
"""

from typing import Any, Final

REST_ENDPOINTS: Final = ("/health", "/status", "/market/latest", "/market/session")
WEBSOCKET_ENDPOINTS: Final = ("/ws", "/ws/{symbol}")

STATES: Final = (
    *("INITIALIZING", "WAITING_L0", "CHECKING_DATA", "READY"),
    *("ACTIVE", "MARKET_CLOSED", "ERROR", "SHUTDOWN"),
)

ENVIRONMENT: Final = {
    # variable -> its value in the document's sample .env
    "DATABASE_URL": "postgresql://username:password@localhost:5432/usdcop_trading",
    "REDIS_URL": "redis://localhost:6379/0",
    "TWELVEDATA_API_KEY_G1_1": "your_real_api_key_here",
    "TWELVEDATA_API_KEY_G1_2": "your_real_api_key_here",
    "READY_SIGNALS_DIR": "/data/ready-signals",
    "BACKUP_DIR": "/home/GlobalForex/USDCOP-RL-Models/data/backups",
}
MENTIONED_VARIABLES: Final = ("SSL_CERT_PATH", "SSL_KEY_PATH")
"""Variables the document names outside the sample."""

FILES: Final = (
    ".env.enhanced-websocket",
    "requirements-enhanced-websocket.txt",
    "docker-compose.enhanced-websocket.yml",
    "Dockerfile.enhanced-websocket",
    "enhanced_websocket_service.py",
    "tests/",
)
FLAG_FILE: Final = "l0_ready.flag"
BACKUP_FILES: Final = ("usdcop_m5_complete_backup.parquet", "usdcop_m5_backup_metadata.json")
LOG_PHRASE: Final = "L0 ready signal"
CONTAINER: Final = "enhanced-websocket-service"
COMPOSE_SERVICE: Final = "enhanced-websocket"

SAMPLES: Final[dict[str, dict[str, Any]]] = {
    "/health": {
        "status": "healthy",
        "service": "enhanced-websocket-service",
        "version": "4.0.0",
        "service_info": {
            "name": "enhanced_websocket_service",
            "status": "active",
            "uptime_seconds": 1234,
        },
        "connectivity": {
            "database": {"connected": True, "response_time_ms": 5},
            "redis": {"connected": True, "response_time_ms": 2},
        },
        "system_resources": {
            "cpu_percent": 15.2,
            "memory_percent": 45.8,
            "disk_percent": 67.3,
        },
    },
    "/status": {
        "service_status": "active",
        "is_running": True,
        "l0_integration": {
            "ready_signal_exists": True,
            "data_freshness_hours": 2.5,
            "completeness_percentage": 98.7,
            "is_fresh": True,
            "is_complete": True,
        },
        "market_session": {
            "status": "open",
            "current_session_start": "2025-01-20T08:00:00-05:00",
            "current_session_end": "2025-01-20T12:55:00-05:00",
            "minutes_until_close": 145,
        },
        "api_key_usage": {"total_keys": 16, "current_key_index": 3, "total_calls": 127},
        "realtime_collection": {"active": True, "websocket_connected": True},
    },
    "/market/latest": {
        "symbol": "USDCOP",
        "price": 4275.45,
        "bid": 4275.20,
        "ask": 4275.70,
        "spread": 0.50,
        "volume": 125000,
        "timestamp": "2025-01-20T10:30:15-05:00",
        "source": "twelvedata_websocket",
    },
}
"""Sample answers; the key names are the contract, the values show the types."""

FLAG_SAMPLE: Final = {"ready": True, "timestamp": "2025-01-20T07:00:00-05:00"}
CLIENT_SENDS: Final = {"type": "heartbeat"}
SERVER_SENDS: Final = {
    # type -> the fields beside it that the document's client reads
    "market_data": ("data",),
    "heartbeat_response": ("server_status",),
}

SQL: Final = """\
-- Market data table
CREATE TABLE IF NOT EXISTS market_data (
    id SERIAL PRIMARY KEY,
    symbol VARCHAR(10) NOT NULL,
    datetime TIMESTAMP WITH TIME ZONE NOT NULL,
    open DECIMAL(12,6),
    high DECIMAL(12,6),
    low DECIMAL(12,6),
    close DECIMAL(12,6),
    volume INTEGER DEFAULT 0,
    source VARCHAR(50),
    created_at TIMESTAMP WITH TIME ZONE DEFAULT NOW(),
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT NOW(),
    UNIQUE(symbol, datetime, source)
);

-- Real-time market data table
CREATE TABLE IF NOT EXISTS realtime_market_data (
    id SERIAL PRIMARY KEY,
    symbol VARCHAR(10) NOT NULL,
    time TIMESTAMP WITH TIME ZONE NOT NULL,
    bid DECIMAL(12,6),
    ask DECIMAL(12,6),
    last DECIMAL(12,6),
    volume INTEGER DEFAULT 0,
    spread DECIMAL(12,6),
    session_date DATE,
    trading_session BOOLEAN DEFAULT true,
    source VARCHAR(50),
    created_at TIMESTAMP WITH TIME ZONE DEFAULT NOW()
);

-- System health table
CREATE TABLE IF NOT EXISTS system_health (
    id SERIAL PRIMARY KEY,
    service_name VARCHAR(100),
    status VARCHAR(50),
    details JSONB,
    response_time_ms INTEGER,
    error_message TEXT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT NOW()
);
"""
TABLES: Final = ("market_data", "realtime_market_data", "system_health")

DATABASE_QUERIES: Final = (
    "SELECT * FROM pg_stat_activity WHERE datname = 'usdcop_trading';",
    "SELECT schemaname, tablename, pg_size_pretty(pg_total_relation_size(tablename::text))"
    " FROM pg_tables WHERE schemaname = 'public';",
)

COMMANDS: Final[dict[str, str]] = {
    # command line, continuation lines joined -> the test that stands for it
    "cp .env.enhanced-websocket .env": "test_files.test_copied_template_is_a_valid_configuration",
    "mkdir -p /data/ready-signals": "shell",
    "mkdir -p /data/backups": "shell",
    "mkdir -p ./logs": "shell",
    "docker-compose -f docker-compose.enhanced-websocket.yml up -d": "unit.test_container",
    "docker-compose -f docker-compose.enhanced-websocket.yml logs -f enhanced-websocket": (
        "unit.test_container"
    ),
    "docker-compose -f docker-compose.enhanced-websocket.yml down": "unit.test_container",
    "docker build -f Dockerfile.enhanced-websocket -t enhanced-websocket-service .": (
        "unit.test_container"
    ),
    "docker run -d --name enhanced-websocket -p 8080:8080 --env-file .env"
    " -v /data/ready-signals:/data/ready-signals -v ./data/backups:/data/backups"
    " enhanced-websocket-service": "unit.test_container",
    "pip install -r requirements-enhanced-websocket.txt": ".ci/run",
    'export DATABASE_URL="postgresql://username:password@localhost:5432/usdcop_trading"': (
        "test_files.test_exported_placeholder_is_refused_with_a_reason"
    ),
    'export REDIS_URL="redis://localhost:6379/0"': (
        "test_files.test_exported_placeholder_is_refused_with_a_reason"
    ),
    'export TWELVEDATA_API_KEY_G1_1="your_api_key_here"': (
        "test_files.test_exported_placeholder_is_refused_with_a_reason"
    ),
    "python enhanced_websocket_service.py": (
        "test_files.test_exported_placeholder_is_refused_with_a_reason"
    ),
    "curl http://localhost:8080/health": "e2e.test_requirements_walk",
    "curl http://localhost:8080/status": "e2e.test_requirements_walk",
    "curl http://localhost:8080/market/latest": "e2e.test_requirements_walk",
    'echo \'{"ready": true, "timestamp": "2025-01-20T07:00:00-05:00"}\''
    " > /data/ready-signals/l0_ready.flag": "test_files.test_flag_of_the_document_counts",
    "docker logs enhanced-websocket-service": "unit.test_container",
    "docker logs -f enhanced-websocket-service": "unit.test_container",
    'docker logs enhanced-websocket-service | grep "L0 ready signal"': (
        "test_files.test_log_says_what_the_document_greps_for"
    ),
    DATABASE_QUERIES[0]: "test_tables.test_monitoring_queries_run",
    DATABASE_QUERIES[1]: "test_tables.test_monitoring_queries_run",
    "redis-cli info memory": "test_tables.test_redis_answers_the_monitoring_commands",
    "redis-cli info stats": "test_tables.test_redis_answers_the_monitoring_commands",
    "docker stats enhanced-websocket-service": "unit.test_container",
    "du -sh /data/ready-signals /data/backups": "shell",
    "pip install pytest pytest-asyncio httpx": (
        "test_files.test_test_libraries_come_with_the_requirements_file"
    ),
    "pytest tests/": ".ci/run",
    "pytest --cov=enhanced_websocket_service tests/": (
        "test_files.test_coverage_command_measures_the_package"
    ),
}
"""Every command of the document's shell blocks. ``shell``: nothing of ours takes part in it."""

JAVASCRIPT = """\
// Connect to WebSocket
const ws = new WebSocket('ws://localhost:8080/ws');

ws.onopen = function(event) {
    console.log('Connected to Enhanced WebSocket Service');

    // Send heartbeat
    ws.send(JSON.stringify({
        type: 'heartbeat'
    }));
};

ws.onmessage = function(event) {
    const data = JSON.parse(event.data);

    if (data.type === 'market_data') {
        console.log('Price update:', data.data);
    } else if (data.type === 'heartbeat_response') {
        console.log('Server status:', data.server_status);
    }
};

// Symbol-specific WebSocket
const symbolWs = new WebSocket('ws://localhost:8080/ws/USDCOP');
"""
