"""UIM: an instant-messaging server. Read server.py first, then wire/frames.py, live/session.py, chat/writer.py, chat/tailer.py."""

__version__ = "0.1.0"
