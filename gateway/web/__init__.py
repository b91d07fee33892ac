"""HTTP and WebSocket plumbing, and the ICE's endpoint. Below this package only `runtime` imports aiohttp, as a client.

The page and the API are in `admin`.
"""
