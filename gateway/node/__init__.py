"""What one running gateway holds and does: admission, sessions, drops, operations on their way, its lease.

It knows no HTTP beyond the transport that a session is given, and nothing of admins (`services`).
"""
