// A client that comes back by itself, goes on where it was, and knows every tick it did not get.
// Web pages: import { follow } from './resume.mjs'. Node 22 and later, or 20 with
// --experimental-websocket: node examples/resume.mjs ws://localhost:8080 USDCOP [EPOCH:OFFSET]

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 30_000;
const HEARTBEAT_MS = 5_000;
const SILENCE_MS = 15_000;
const HOPELESS = new Set([1008, 4400, 4404]); // the same request would fail again

/**
 * @param {string} url ws://localhost:8080
 * @param {string} symbol USDCOP
 * @param {(event: {type: string}) => void} onEvent every message of the server once and in order, and
 *     {type: 'gap', symbol, epoch, from, to, reason} for offsets that did not and will not come
 * @param {{cursor?: string, delayMs?: number}} [options] cursor: EPOCH:OFFSET to go on behind
 * @returns {{cursor: () => string | null, close: () => void}} keep cursor() to resume another day
 */
export function follow(url, symbol, onEvent, { cursor: start = null, delayMs = FIRST_DELAY_MS } = {}) {
  let cursor = null; // {epoch, offset}: everything up to this tick is accounted for
  let closed = false;
  let failures = 0;
  let socket = null;
  let timer = null;
  if (start) {
    const [epoch, offset] = start.split(':').map(Number);
    cursor = { epoch, offset };
  }

  const gap = (epoch, from, to, reason) => onEvent({ type: 'gap', symbol, epoch, from, to, reason });

  function take(message) {
    const { type, epoch, offset } = message;
    if (type === 'welcome' && message.epoch !== null) {
      const head = message.offsets[symbol];
      const ahead = cursor && (cursor.epoch > epoch || (cursor.epoch === epoch && cursor.offset > head));
      if (ahead) gap(cursor.epoch, cursor.offset + 1, null, 'history_lost');
      if (ahead || !cursor) cursor = { epoch, offset: head };
    } else if (type === 'market_data' && !message.snapshot) {
      if (cursor && (epoch < cursor.epoch || (epoch === cursor.epoch && offset <= cursor.offset))) return;
      const from = cursor && cursor.epoch === epoch ? cursor.offset + 1 : 1;
      if (cursor && offset > from) gap(epoch, from, offset - 1, 'not_received');
      cursor = { epoch, offset };
    } else if (type === 'skipped') {
      gap(epoch, message.from, message.to, message.reason);
      if (message.to !== null) cursor = { epoch, offset: message.to };
      return;
    } else if (type === 'epoch') {
      if (cursor && epoch <= cursor.epoch) return;
      const last = message.previous_last_offset;
      if (cursor && message.previous_epoch === cursor.epoch && last > cursor.offset) {
        gap(cursor.epoch, cursor.offset + 1, last, 'not_received');
      }
      cursor = { epoch, offset: 0 };
    }
    onEvent(message);
  }

  function open() {
    const since = cursor ? `?since=${cursor.epoch}:${cursor.offset}` : '';
    socket = new WebSocket(`${url}/ws/${symbol}${since}`);
    const mine = socket;
    let heard = Date.now();
    const heartbeat = setInterval(() => {
      if (mine.readyState !== WebSocket.OPEN) return;
      // A link that is dead without saying so: closing it starts the reconnect below.
      if (Date.now() - heard > SILENCE_MS) mine.close(4000, 'silent');
      else mine.send('{"type":"heartbeat"}');
    }, HEARTBEAT_MS);
    mine.onmessage = ({ data }) => {
      heard = Date.now();
      failures = 0;
      const message = JSON.parse(data);
      if (message.type !== 'heartbeat_response') take(message);
    };
    let over = false;
    const end = (code, reason) => {
      if (over) return;
      over = true;
      clearInterval(heartbeat);
      const retry = !closed && !HOPELESS.has(code);
      onEvent({ type: 'disconnected', code, reason, retry });
      if (!retry) return;
      const ceiling = Math.min(LONGEST_DELAY_MS, delayMs * 2 ** failures);
      failures += 1;
      // Jitter: a thousand clients must not come back in the same instant.
      timer = setTimeout(open, ceiling * (0.5 + Math.random() / 2));
    };
    mine.onclose = ({ code, reason }) => end(code, reason);
    // A close event follows, but for Node 20 when nobody listens there.
    mine.onerror = () => setTimeout(end, 0, 1006, 'no connection');
  }

  open();
  return {
    cursor: () => (cursor ? `${cursor.epoch}:${cursor.offset}` : null),
    close: () => {
      closed = true;
      clearTimeout(timer);
      socket.close();
    },
  };
}

if (typeof process !== 'undefined' && process.argv[1]?.endsWith('resume.mjs')) {
  const [url = 'ws://localhost:8080', symbol = 'USDCOP', cursor = null] = process.argv.slice(2);
  follow(url, symbol, (event) => console.log(JSON.stringify(event)), { cursor });
}
