// How node's ws is used: node peer.js PORT RATE TEXT, beside a node_modules that has ws.
const { WebSocketServer, WebSocket } = require("ws");
const [port, rate, text] = [Number(process.argv[2]), Number(process.argv[3]), process.argv[4]];
const server = new WebSocketServer({ host: "127.0.0.1", port, perMessageDeflate: false, backlog: 4096 });
const message = Buffer.from(text);
server.on("listening", () => console.log("ready " + port));
process.stdin.once("data", () => {
  let due = performance.now();
  (function next() {
    due += 1000 / rate;
    setTimeout(() => {
      for (const client of server.clients)
        if (client.readyState === WebSocket.OPEN) client.send(message, { binary: false });
      next();
    }, Math.max(0, due - performance.now()));
  })();
});
process.stdin.on("end", () => process.exit(0));
