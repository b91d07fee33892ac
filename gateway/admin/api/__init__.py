"""The JSON API under `/admin/api/v1`: a module for each noun; `admin.openapi` describes it.

Requests are refused in the order 401, 422, 404, 403, 412, 409 (docs/api.md).
"""
