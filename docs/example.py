"""The README's example, to be run."""

from jidoka_shm import SessionManager, SessionReader

with SessionManager("example", fresh=True) as manager:
    sid = manager.create_session(metadata={"project": "jidoka"}, llm_config={"model": "small"})
    manager.update_session(sid, status="active")

    # In this or any other process of the host:
    reader = SessionReader("example")
    print(reader.get_session_info(sid))
    print(reader.get_session_status(sid), reader.list_sessions())

    manager.terminate_session(sid)
    print(reader[sid].status)  # terminated, and gone 50 ms later
    manager.unlink()
