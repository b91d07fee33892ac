"""What an admin can do, once for the page, the API and the commands.

A service takes values, applies the rules of `core` through `store`, and returns a value or a `Problem`.
Nothing here knows how page and API are served (`web`, `admin`), or the sessions of this node (`node`).
"""
