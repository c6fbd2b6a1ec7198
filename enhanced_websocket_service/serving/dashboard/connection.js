// One WebSocket that reconnects by itself and resumes behind the last tick it got.

const FIRST_DELAY_MS = 400;
const LONGEST_DELAY_MS = 10_000;
const HEARTBEAT_MS = 2_000;
const SILENCE_MS = 10_000;

export class Connection {
  /**
   * @param {string} symbol USDCOP
   * @param {(message: object) => void} onMessage every message of the server, parsed
   * @param {(up: boolean, detail: string) => void} onLink the link came up or went down
   */
  constructor(symbol, onMessage, onLink) {
    this.symbol = symbol;
    this.onMessage = onMessage;
    this.onLink = onLink;
    this.cursor = null; // {epoch, offset} of the last tick received or told as skipped
    this.failures = 0;
    this.open();
  }

  url() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const since = this.cursor
      ? `?since=${this.symbol}:${this.cursor.epoch}:${this.cursor.offset}`
      : "";
    return `${scheme}://${location.host}/ws/${this.symbol}${since}`;
  }

  open() {
    const socket = new WebSocket(this.url());
    let heard = performance.now();
    const heartbeat = setInterval(() => {
      if (socket.readyState !== WebSocket.OPEN) return;
      // A link that is dead without saying so: closing it starts the reconnect below.
      if (performance.now() - heard > SILENCE_MS) socket.close(4000, "silent");
      else socket.send('{"type":"heartbeat"}');
    }, HEARTBEAT_MS);
    socket.onopen = () => {
      this.failures = 0;
      this.onLink(true, this.cursor ? "resumed" : "connected");
      socket.send('{"type":"heartbeat"}');
    };
    socket.onmessage = (event) => {
      heard = performance.now();
      const message = JSON.parse(event.data);
      this.follow(message);
      this.onMessage(message);
    };
    socket.onclose = (event) => {
      clearInterval(heartbeat);
      const ceiling = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.failures);
      this.failures += 1;
      this.onLink(false, event.reason || `code ${event.code}`);
      // Full jitter: a thousand pages must not come back in the same instant.
      setTimeout(() => this.open(), FIRST_DELAY_MS / 2 + Math.random() * ceiling);
    };
  }

  follow(message) {
    if (message.symbol !== this.symbol) return;
    if (message.type === "market_data") {
      if (!message.snapshot || !this.cursor) this.cursor = { epoch: message.epoch, offset: message.offset };
    } else if (message.type === "skipped" && message.to !== null) {
      this.cursor = { epoch: message.epoch, offset: message.to };
    } else if (message.type === "epoch") {
      this.cursor = { epoch: message.epoch, offset: 0 };
    } else if (message.type === "error" && message.code === "bad_cursor") {
      this.cursor = null;
    }
  }
}
