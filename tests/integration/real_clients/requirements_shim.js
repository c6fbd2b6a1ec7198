// Loaded before the requirements' snippet: "localhost:8080" is the server of the test, and what the
// snippet logs becomes one JSON array a line. The snippet itself stays as it is written.
const [target, library] = process.env.EWS_SHIM.split(" ");
const Socket = library ? require(library) : globalThis.WebSocket;
globalThis.WebSocket = class extends Socket {
  constructor(url) {
    super(url.replace("localhost:8080", target));
    process.stdout.write(JSON.stringify(["connecting", url]) + "\n");
  }
};
console.log = (...said) => process.stdout.write(JSON.stringify(said) + "\n");
