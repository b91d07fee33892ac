"""HTTP and WebSocket plumbing, and the ICE's endpoint. aiohttp is used from here upwards only.

What people and scripts call lives in `admin`.
"""
