// A WebSocket client driven line by line: node client.js URL [module with a WebSocket of its own]
// Input: a line is sent as it is, ":close" closes. Output: each message, and how it ended.
const [url, library] = process.argv.slice(2);
const Socket = library ? require(library) : globalThis.WebSocket;
const ws = new Socket(url);
const say = (text) => process.stdout.write(text + "\n");
ws.onopen = () => say(JSON.stringify({ type: "opened", extensions: ws.extensions }));
ws.onmessage = (event) => say(event.data);
ws.onerror = () => say(JSON.stringify({ type: "failed" }));
ws.onclose = (event) => {
  say(JSON.stringify({ type: "closed", code: event.code }));
  process.exit(0);
};
require("readline")
  .createInterface({ input: process.stdin })
  .on("line", (line) => (line === ":close" ? ws.close(1000) : ws.send(line)));
