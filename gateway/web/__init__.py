"""HTTP and WebSocket plumbing, and the endpoints of ICEs and of enrolments. The page and the API are in `admin`.

Of the packages below this one, only `runtime` imports aiohttp, for its client.
"""
