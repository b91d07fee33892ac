"""HTTP and WebSocket plumbing, and the ICE's endpoint. Packages below this one never import aiohttp.

The page and the API are in `admin`.
"""
