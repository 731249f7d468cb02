#!lua name=tidemark_1
-- The functions that guard a group (one hash: h = header, f = fence, o = owner, e*/p* = segments).
-- They check, then only write bytes: no arithmetic on stored values. A function that runs out of memory is refused
-- by Redis before it starts, and nothing after the last check can fail, so each write happens whole or not at all.

-- tm1_claim KEYS[1]=group ARGV[1]=token
-- Makes the caller the owner, whoever was. Returns {header or false, fence or false, {field, length, ...}}.
local function claim(keys, args)
  local key = keys[1]
  redis.call('HSET', key, 'o', args[1])
  local segments = {}
  for _, field in ipairs(redis.call('HKEYS', key)) do
    local kind = string.sub(field, 1, 1)
    if kind == 'e' or kind == 'p' then
      segments[#segments + 1] = field
      segments[#segments + 1] = redis.call('HSTRLEN', key, field)
    end
  end
  return { redis.call('HGET', key, 'h'), redis.call('HGET', key, 'f'), segments }
end

-- tm1_reset KEYS[1]=group ARGV[1]=token
-- Empties the group for a rebuild; the owner stays. Refuses as tm1_flush does.
local function reset(keys, args)
  local key = keys[1]
  local owner = redis.call('HGET', key, 'o')
  if owner ~= args[1] then return owner and 'OWNER' or 'FENCE' end
  redis.call('DEL', key)
  redis.call('HSET', key, 'o', args[1])
  return 'OK'
end

-- tm1_put KEYS[1]=group ARGV = token, then field, value, ...
-- Puts segments back into a group that was emptied: nobody reads them until tm1_restore stores its header. Refuses as
-- tm1_flush does.
local function put(keys, args)
  local key = keys[1]
  local owner = redis.call('HGET', key, 'o')
  if owner ~= args[1] then return owner and 'OWNER' or 'FENCE' end
  if redis.call('HEXISTS', key, 'f') == 1 then return 'FENCE' end
  for at = 2, #args, 2 do redis.call('HSET', key, args[at], args[at + 1]) end
  return 'OK'
end

-- tm1_restore KEYS[1]=group ARGV = token, fence, header, then fields
-- Makes a group of the segments that were put back, where they are exactly these: what was put may have been lost since.
-- Returns OK, DONE (it is stored already), or refuses as tm1_flush does.
local function restore(keys, args)
  local key, fence = keys[1], args[2]
  local owner = redis.call('HGET', key, 'o')
  if owner ~= args[1] then return owner and 'OWNER' or 'FENCE' end
  local stored = redis.call('HGET', key, 'f')
  if stored then return stored == fence and 'DONE' or 'FENCE' end
  if redis.call('HLEN', key) ~= #args - 2 then return 'FENCE' end
  for at = 4, #args do
    if redis.call('HEXISTS', key, args[at]) == 0 then return 'FENCE' end
  end
  redis.call('HSET', key, 'h', args[3], 'f', fence)
  return 'OK'
end

-- tm1_flush KEYS[1]=group ARGV = token, expected fence ('' = there must be none), new fence, new header,
--   n, n times (field, value), then fields to delete
-- Returns OK, DONE (this very write is stored already), or refuses and writes nothing: OWNER (another has claimed the
-- group), FENCE (the group is elsewhere, or gone altogether).
local function flush(keys, args)
  local key, token, expected, fence, header, n = keys[1], args[1], args[2], args[3], args[4], tonumber(args[5])
  local owner = redis.call('HGET', key, 'o')
  if owner ~= token then return owner and 'OWNER' or 'FENCE' end
  local stored = redis.call('HGET', key, 'f')
  if stored == fence then return 'DONE' end
  if (stored or '') ~= expected then return 'FENCE' end
  local at = 6
  for _ = 1, n do
    redis.call('HSET', key, args[at], args[at + 1])
    at = at + 2
  end
  for i = at, #args do redis.call('HDEL', key, args[i]) end
  redis.call('HSET', key, 'h', header, 'f', fence)
  return 'OK'
end

-- tm1_trim, as tm1_flush with n = 0
-- Deletes segments and stores nothing but the header: admitted when memory is full, since it is what makes room.
local function trim(keys, args)
  if args[5] ~= '0' then return redis.error_reply('tm1_trim stores no segments') end
  return flush(keys, args)
end

-- tm1_read KEYS[1]=group ARGV[1] = 'h' (header alone), 'e' or 'p' (header, the segments of that kind, and fields that
--   aren't known), ARGV[2] = n (0 if left out): of segments numbered up to n the value is false
-- Returns {header or false, field, value, ...}: one consistent state of the group.
local function read(keys, args)
  local key, kind, newest = keys[1], args[1], tonumber(args[2] or 0)
  local out = { redis.call('HGET', key, 'h') }
  if kind == 'h' then return out end
  local known, other = { h = true, f = true, o = true }, kind == 'e' and 'p' or 'e'
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if not known[field] and string.sub(field, 1, 1) ~= other then
      local number = tonumber(string.match(field, ':(%d+)$')) or math.huge
      out[#out + 1] = field
      out[#out + 1] = number > newest and redis.call('HGET', key, field)
    end
  end
  return out
end

-- tm1_lease KEYS[1]=lease ARGV = token, milliseconds, 1 if the caller lost it and may have written since, else 0
-- Takes or renews a lease; returns 0 if another holds it, 1 if the caller held it, 2 if nobody did, or if the caller did and
-- one who had lost it may have written: its token has a ! then, which the holder alone takes off.
local function lease(keys, args)
  local key, token = keys[1], args[1]
  local holder = redis.call('GET', key)
  if holder and holder ~= token and holder ~= token .. '!' then
    if args[3] == '1' and string.sub(holder, -1) ~= '!' then redis.call('SET', key, holder .. '!', 'KEEPTTL') end
    return 0
  end
  redis.call('SET', key, token, 'PX', args[2])
  return holder == token and 1 or 2
end

-- tm1_panes KEYS[1]=group ARGV[1]=a fence
-- Returns {} where there is no group, or one that is being put back; {fence} where it is the one given, so that nothing
-- has changed; else {fence, field of a pane, ...}: one consistent state of the group.
local function panes(keys, args)
  local key = keys[1]
  local fence = redis.call('HGET', key, 'f')
  if not fence then return {} end
  local out = { fence }
  if fence == args[1] then return out end
  for _, field in ipairs(redis.call('HKEYS', key)) do
    -- 112 is p.
    if string.byte(field) == 112 then out[#out + 1] = field end
  end
  return out
end

-- Calls a command with n arguments from args[at] on, an even number at once, as many as the stack has room for. Returns
-- where they end.
local function slices(command, key, args, at, n)
  local after = at + n
  for from = at, after - 1, 1000 do
    redis.call(command, key, unpack(args, from, math.min(from + 999, after - 1)))
  end
  return after
end

-- tm1_ranks KEYS=sorted sets ARGV = for each of them: 1 (what stands there goes first) or 0, n, m, n members that go,
--   (count, member)... of m arguments
-- Changes published top-k, each in one step, so that no reader sees a mixture.
local function ranks(keys, args)
  local at = 1
  for _, key in ipairs(keys) do
    local anew, gone, put = args[at], tonumber(args[at + 1]), tonumber(args[at + 2])
    if anew == '1' then redis.call('DEL', key) end
    at = slices('ZREM', key, args, at + 3, gone)
    at = slices('ZADD', key, args, at, put)
  end
  return 'OK'
end

redis.register_function('tm1_put', put)
redis.register_function('tm1_restore', restore)
redis.register_function('tm1_flush', flush)
redis.register_function('tm1_lease', lease)
redis.register_function('tm1_ranks', ranks)
-- When memory is full, what makes room must pass, and so must the claim without which nobody could.
redis.register_function { function_name = 'tm1_claim', callback = claim, flags = { 'allow-oom' } }
redis.register_function { function_name = 'tm1_reset', callback = reset, flags = { 'allow-oom' } }
redis.register_function { function_name = 'tm1_trim', callback = trim, flags = { 'allow-oom' } }
redis.register_function { function_name = 'tm1_read', callback = read, flags = { 'no-writes' } }
redis.register_function { function_name = 'tm1_panes', callback = panes, flags = { 'no-writes' } }
