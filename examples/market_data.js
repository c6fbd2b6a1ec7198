// The service from a web page, or from Node 22 and later: node examples/market_data.js
// (Node 20: node --experimental-websocket examples/market_data.js). What it cannot do, resume.mjs does.

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
