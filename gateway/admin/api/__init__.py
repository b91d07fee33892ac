"""The JSON API under `/admin/api/v1`: a file per noun, described by `openapi`.

Refusals come in the order 401, 422, 404, 403, 412, 409 (contract section 7).
"""
