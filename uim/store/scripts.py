"""Lua for Redis: what must be judged and changed there in one step.

Rule: a script may be repeated: it is told how things are, not what has happened.
"""

from __future__ import annotations

import hashlib
from typing import Final


class Script:
    """A script, and the name that Redis knows it by once it is loaded."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.name = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


# One process says which devices of a user it holds. A field for each (device, process), so that a device which has moved to
# another process is there until the last of the two has let go. Versions grow even where the hash was lost: by Redis's clock.
# What is told is numbered, and the latest are kept for those whom a word does not reach.
# KEYS: presence:user:…, presence:devices:…, how many were told, the latest of these
# ARGV: channel, user, process, now, whether to tell anyway ('1'), life in s, how many to keep, devices …
# Gives {2 for a change that was told, 1 for told anyway, 0, version, status}.
HOLD_DEVICES: Final = Script("""
local held, process, holds = redis.call('HGETALL', KEYS[2]), ARGV[3], {}
for i = 8, #ARGV do holds[ARGV[i] .. ':' .. process] = true end
local was, version, others = 'offline', 0, 0
for i = 1, #held, 2 do
    local name, value = held[i], held[i + 1]
    if name == '#status' then was = value
    elseif name == '#version' then version = tonumber(value)
    elseif value ~= process then others = others + 1
    elseif not holds[name] then redis.call('HDEL', KEYS[2], name) end
end
for name in pairs(holds) do redis.call('HSET', KEYS[2], name, process) end
local status = (others > 0 or next(holds)) and 'online' or 'offline'
local changes = status ~= was
local tells = changes or ARGV[5] == '1'
if tells then
    local time = redis.call('TIME')
    version = math.max(version + 1, time[1] * 1000000 + time[2])
end
local shown = string.format('%.0f', version)
redis.call('HSET', KEYS[2], '#status', status, '#version', shown)
redis.call('EXPIRE', KEYS[2], ARGV[6])
if status == 'online' or changes then
    redis.call('SET', KEYS[1], '{"status":"' .. status .. '","last_seen":"' .. ARGV[4] .. '"}', 'EX', ARGV[6])
end
if tells then
    local word = '{"user_id":"' .. ARGV[2] .. '","status":"' .. status
        .. '","last_seen":' .. (changes and '"' .. ARGV[4] .. '"' or 'null')
        .. ',"version":' .. shown .. ',"chosen":' .. (ARGV[5] == '1' and 'true' or 'false')
        .. ',"number":' .. redis.call('INCR', KEYS[3]) .. '}'
    redis.call('RPUSH', KEYS[4], word)
    redis.call('LTRIM', KEYS[4], -ARGV[7], -1)
    redis.call('PUBLISH', ARGV[1], word)
end
return {changes and 2 or tells and 1 or 0, shown, status}""")


# Texts into the spool, from the first on as far as there is room. An empty stream has no size, whatever was counted before.
# KEYS: {log}:spool:messages, {log}:spool:bytes. ARGV: the most bytes, then a packed draft each. Gives the ids of those kept.
SPOOL_ADD: Final = Script("""
local size = 0
if redis.call('XLEN', KEYS[1]) > 0 then size = tonumber(redis.call('GET', KEYS[2]) or '0') end
local ids = {}
for i = 2, #ARGV do
    if size + #ARGV[i] > tonumber(ARGV[1]) then break end
    size = size + #ARGV[i]
    ids[i - 1] = redis.call('XADD', KEYS[1], '*', 'draft', ARGV[i])
end
redis.call('SET', KEYS[2], size)
return ids""")

# KEYS: the same. ARGV: their bytes, then the ids. Gives how many were there.
SPOOL_REMOVE: Final = Script("""
local there = 0
for i = 2, #ARGV do there = there + redis.call('XDEL', KEYS[1], ARGV[i]) end
if there > 0 then redis.call('DECRBY', KEYS[2], ARGV[1]) end
if redis.call('XLEN', KEYS[1]) == 0 then redis.call('DEL', KEYS[1], KEYS[2]) end
return there""")
