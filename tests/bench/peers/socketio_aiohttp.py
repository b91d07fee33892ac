"""python-socketio on aiohttp and uvloop, which checks nothing.

    python socketio_aiohttp.py PORT

Echoes the event `echo`; POST /kick/NUMBER disconnects whom that number was given in the query.
"""

import asyncio
import sys

import socketio
import uvloop
from aiohttp import web

server = socketio.AsyncServer(
    async_mode="aiohttp", transports=["websocket"], cors_allowed_origins="*"
)
connections = {}


@server.event
async def connect(sid, environ):
    number = environ["QUERY_STRING"].rpartition("number=")[2]
    connections[number] = sid


@server.event
async def echo(sid, data):
    await server.emit("echo", data, to=sid)


async def kick(request):
    await server.disconnect(connections[request.match_info["number"]])
    return web.Response()


async def main(port):
    app = web.Application()
    app.router.add_post("/kick/{number}", kick)
    server.attach(app)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


uvloop.run(main(int(sys.argv[1])))
