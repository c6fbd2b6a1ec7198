#!/bin/sh
# The passwords of the PostgreSQL and the Valkey of docker-compose.enhanced-websocket.yml, as files of which
# each can be read by the one user who needs it. Runs as root in the image of PostgreSQL:
#
#   make    before the others start: what is not there yet is made, what is there stays
#   renew   by hand, while PostgreSQL runs: new passwords; then restart redis and enhanced-websocket
set -eu
umask 077

secrets=${SECRETS_DIR:-/run/ews-secrets}
data=${DATA_DIR:-/var/lib/postgresql}
postgres_user=$(id -u postgres 2>/dev/null || echo 70)
service_user=10001 # of Dockerfile.enhanced-websocket
valkey_user=10002  # as the compose file runs Valkey
export PGHOST="${PGHOST:-postgres}" PGUSER="${PGUSER:-usdcop}" PGDATABASE="${PGDATABASE:-usdcop_trading}"
export PGCONNECT_TIMEOUT=10

random() {
    head -c 64 /dev/urandom | sha256sum | cut -c 1-48 | tr -d '\n'
}

# Every byte of it, so that none means anything in an address.
encoded() {
    printf %s "$1" | od -An -v -t x1 | tr -d ' \n' | sed 's/../%&/g'
}

# put FILE USER: standard input becomes the file, whole or not at all.
put() {
    cat >"$secrets/.$1"
    chmod 0400 "$secrets/.$1"
    chown "$2:$2" "$secrets/.$1"
    mv -f "$secrets/.$1" "$secrets/$1"
}

known() {
    cat "$secrets/$1" 2>/dev/null || true
}

# Without a choice of the user's, data from before keep the password that every release before had.
first_postgres_password() {
    if [ -n "${POSTGRES_PASSWORD:-}" ]; then
        printf %s "$POSTGRES_PASSWORD"
    elif [ -n "$(find "$data" -maxdepth 3 -name PG_VERSION)" ]; then
        echo "WARNING: the database from before keeps its password, which everybody knows. Change it:" \
            "docker-compose -f docker-compose.enhanced-websocket.yml run --rm secrets renew" >&2
        printf usdcop
    else
        random
    fi
}

# write POSTGRES VALKEY: the two passwords, and what is made of them. Those who were first come first:
# if this is interrupted, the next time makes the rest of them.
write() {
    if [ -z "$1" ] || [ -z "$2" ]; then
        echo "There is no password to write." >&2
        exit 1
    fi
    printf %s "$1" | put postgres-password "$postgres_user"
    printf %s "$2" | put valkey-password "$valkey_user"
    echo "requirepass $2" | put valkey.conf "$valkey_user"
    echo "postgresql://$PGUSER:$(encoded "$1")@postgres:5432/$PGDATABASE" | put database-url "$service_user"
    echo "redis://:$2@redis:6379/0" | put redis-url "$service_user"
    sync
}

login() {
    PGPASSWORD=$1 psql -q -v ON_ERROR_STOP=1 -f - >/dev/null
}

# Others pass through to their own file; only names are to be seen.
chmod 0711 "$secrets"
case ${1:-} in
make)
    # Whether an empty volume takes over the owner of the image's folder is the engine's business, and
    # PostgreSQL runs as its own user from the start.
    if [ -z "$(ls -A "$data" 2>/dev/null)" ] && [ -d "$data" ]; then
        chown "$postgres_user:$postgres_user" "$data"
    fi
    postgres=$(known postgres-password)
    valkey=$(known valkey-password)
    write "${postgres:-$(first_postgres_password)}" "${valkey:-$(random)}"
    ;;
renew)
    # One that was interrupted may have told PostgreSQL already, and nobody else knows that password: it is
    # kept until it is written for everybody.
    old=$(known postgres-password)
    next=$(known .next)
    if [ ${#next} -ne 48 ]; then
        next=$(random)
        printf %s "$next" >"$secrets/.next"
        sync
    fi
    if echo "SELECT 1;" | login "$next" 2>/dev/null; then
        old=$next
    fi
    echo "ALTER ROLE \"$PGUSER\" PASSWORD '$next';" | login "$old"
    write "$next" "$(random)"
    rm -f "$secrets/.next"
    echo "New passwords are in force once those who use them start again:" \
        "docker-compose -f docker-compose.enhanced-websocket.yml restart redis enhanced-websocket" >&2
    ;;
*)
    echo "usage: $0 make|renew" >&2
    exit 2
    ;;
esac
