// Node's socket.io, which checks nothing:  node socketio_node.mjs PORT
// Echoes the event `echo`; POST /kick/NUMBER disconnects whom that number was given in the query.
import { createServer } from "node:http";
import { Server } from "socket.io";

const connections = new Map();
const http = createServer((request, response) => {
  const kick = /^\/kick\/(\d+)$/.exec(request.url);
  if (kick) connections.get(kick[1])?.disconnect(true);
  response.writeHead(kick ? 200 : 404).end();
});
const io = new Server(http, { transports: ["websocket"], perMessageDeflate: false });
io.on("connection", (socket) => {
  connections.set(socket.handshake.query.number, socket);
  socket.on("echo", (data) => socket.emit("echo", data));
});
http.listen(Number(process.argv[2]), "127.0.0.1", 4096, () => console.log("ready"));
