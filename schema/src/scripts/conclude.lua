-- The one ending of a turn, shared by every step that ends one, and the keys of an agent and its current turn.
--
-- KEYS 1 agent  2 backlog  3 transcript  4 turn  5 result  6 ready:interactive  7 ready:batch  8 open  9 events
--      10 depth  11 idem (the turn key again where the turn has no idempotency key)

local AGENT, BACKLOG, TRANSCRIPT, TURN, RESULT = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local READY = {interactive = KEYS[6], batch = KEYS[7]}
local OPEN, EVENTS, DEPTH, IDEM = KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local MAX_EVENTS = 10000

local function expect_types()
  expect(AGENT, 'hash')
  expect(BACKLOG, 'list')
  expect(TRANSCRIPT, 'list')
  expect(TURN, 'hash')
  expect(RESULT, 'stream')
  expect(READY.interactive, 'stream')
  expect(READY.batch, 'stream')
  expect(OPEN, 'zset')
  expect(EVENTS, 'stream')
  expect(DEPTH, 'string')
  counter(DEPTH)
  if IDEM ~= TURN then
    expect(IDEM, 'string')
  end
end

-- The turn at `index` of the backlog; nil where there is none. Anything unreadable stops the script.
local function backlog_entry(index)
  local text = redis.call('LINDEX', BACKLOG, index)
  if not text then
    return nil
  end
  local turn, priority, enqueued_ms, idem = string.match(text, '^(%S+) (%S+) (%d+) (%S+)$')
  if not STREAMS[priority] then
    error(redis.error_reply('ERR ' .. BACKLOG .. ' holds ' .. text .. ', which is no turn'))
  end
  return {text = text, turn = turn, priority = priority, enqueued_ms = tonumber(enqueued_ms), idem = idem}
end

-- The result stream's top id as two numbers: the epoch that wrote it and the tokens published by then.
local function result_top()
  if redis.call('EXISTS', RESULT) == 0 then
    return 0, 0
  end
  local info = redis.call('XINFO', 'STREAM', RESULT)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      return split_id(info[i + 1])
    end
  end
end

-- An event in its envelope: version 1, then MessagePack.
local function envelope(event)
  return string.char(1) .. cmsgpack.pack(event)
end

-- Ends the head of the backlog; its checks come first, so it writes all or nothing. Fields of `c`: agent, turn,
-- epoch, published, outcome, event (End in its envelope), entry (transcript entry in its envelope or ''), keep_token,
-- now, result_ttl_ms, outcome_ttl_ms. Returns true where the agent has another turn.
local function conclude(c)
  local following = backlog_entry(1)
  local agent = fields(AGENT, 'token', 'priority')
  local stream = READY[agent.priority]
  local new_session = redis.call('HGET', TURN, 'new_session') == '1'
  local ended_epoch = whole(c.epoch + 1)

  -- The bumped epoch refuses everything a worker may still append.
  redis.call('XADD', RESULT, ended_epoch .. '-' .. whole(c.published), 'event', c.event, 'at', whole(c.now))
  redis.call('PEXPIRE', RESULT, c.result_ttl_ms)
  redis.call('HSET', TURN, 'state', 'ended', 'outcome', c.outcome, 'end', c.event, 'epoch', whole(c.epoch))
  redis.call('HDEL', TURN, 'envelope')
  redis.call('PEXPIRE', TURN, c.outcome_ttl_ms)
  if IDEM ~= TURN then
    redis.call('PEXPIRE', IDEM, c.outcome_ttl_ms)
  end
  if c.outcome == 'completed' and c.entry ~= '' and not is_lone(c.agent) then
    if new_session then
      redis.call('DEL', TRANSCRIPT)
    end
    redis.call('RPUSH', TRANSCRIPT, c.entry)
  end
  redis.call('LPOP', BACKLOG)
  redis.call('DECR', DEPTH)
  redis.call('XADD', EVENTS, 'MAXLEN', '~', MAX_EVENTS, '*', 'turn', c.turn, 'agent', c.agent, 'event', c.event)

  redis.call('HSET', AGENT, 'epoch', ended_epoch)
  redis.call('HDEL', AGENT, 'owner', 'delivery')
  if following then
    redis.call('ZADD', OPEN, whole(following.enqueued_ms), c.agent)
  else
    redis.call('ZREM', OPEN, c.agent)
  end
  if following and c.keep_token then
    redis.call('HSET', AGENT, 'state', 'ready')
    return true
  end
  if stream then
    drop_token(stream, agent.token)
  end
  if following then
    add_token(AGENT, c.agent, READY[following.priority], following.priority)
  else
    make_idle(AGENT, c.agent)
  end
  return following ~= nil
end
