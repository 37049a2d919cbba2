"""UIM: an instant-messaging server.

Read server.py first, then wire/frames.py, live/session.py, chat/writer.py and chat/tailer.py.
"""

# Replaces asyncio's loop look-up, so it comes before whatever binds that at import: psycopg and redis.
import trio_asyncio as trio_asyncio

__version__ = "0.1.0"
