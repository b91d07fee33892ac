"""A WebSocket server of aiohttp's own on uvloop, which checks nothing: what the gateway is measured against.

    python bare_aiohttp.py PORT

Echoes; POST /kick/NUMBER closes the connection whose path ended in that number.
"""

import asyncio
import sys

import uvloop
from aiohttp import web

connections = {}


async def connect(request):
    socket = web.WebSocketResponse(compress=False)
    await socket.prepare(request)
    number = request.match_info["number"]
    connections[number] = socket
    try:
        await socket.send_str("welcome")
        async for message in socket:
            await socket.send_str(message.data)
    finally:
        if connections.get(number) is socket:
            del connections[number]
    return socket


async def kick(request):
    await connections[request.match_info["number"]].close(code=4101, message=b"kicked")
    return web.Response()


async def main(port):
    app = web.Application()
    app.router.add_get("/ws/{number}", connect)
    app.router.add_post("/kick/{number}", kick)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


uvloop.run(main(int(sys.argv[1])))
