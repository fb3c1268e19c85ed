// The least a Node server can be: one socket, one fixed answer per request. `node bare.mjs PORT`; with no port it
// serves the listener inherited as descriptor 3.
import { createServer } from "node:net";

const answer = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nContent-Type: text/plain\r\n\r\nhello\n";

const server = createServer((socket) => {
  let head = "";
  socket.setNoDelay(true);
  socket.on("error", () => socket.destroy());
  socket.on("data", (data) => {
    head += data.toString("latin1");
    for (let end = head.indexOf("\r\n\r\n"); end >= 0; end = head.indexOf("\r\n\r\n")) {
      const request = head.slice(0, end).toLowerCase();
      head = head.slice(end + 4);
      if (request.includes("connection: close")) return socket.end(answer);
      socket.write(answer);
    }
  });
});

const port = process.argv[2];
server.listen(port ? { host: "127.0.0.1", port: Number(port) } : { fd: 3 });
