"""What one running gateway holds and does: admission, sessions, drops, sending operations and webhooks, its lease.

Nothing here knows `services`, or HTTP except through the transport of a session.
"""
