-- The one ending of a turn, shared by every step that ends one, and the keys of an agent and one of its turns.
--
-- KEYS after the shared ones, for each item: agent, backlog, transcript, turn, result,
--      idem (the turn key again where the turn has no idempotency key), parked

local ITEM = 7
local MAX_EVENTS = '10000'
-- What Redis keeps of an ended turn besides its hash and its results, measured: its entries in the indexes and in the events.
local ENDED_OVERHEAD_BYTES = 700

local function item_count()
  return (#KEYS - SHARED) / ITEM
end

local function item_keys(i)
  local k = SHARED + i * ITEM
  return {
    agent = KEYS[k + 1], backlog = KEYS[k + 2], transcript = KEYS[k + 3], turn = KEYS[k + 4], result = KEYS[k + 5],
    idem = KEYS[k + 6], parked = KEYS[k + 7],
  }
end

-- What the end of a turn needs to know of its agent.
local AGENT_FIELDS = {'state', 'ticket', 'priority', 'owner', 'epoch', 'hold', 'on_dead', 'continues'}

local function read_agent(keys)
  return fields(keys.agent, AGENT_FIELDS)
end

-- The first turn of the backlog and the one behind; nil if there is none.
local function read_backlog(keys)
  local texts = ask('LRANGE', keys.backlog, '0', '1')
  return backlog_entry(texts[1]), backlog_entry(texts[2])
end

-- The agent, its head's text, and the turn behind, if `worker` holds the lease of `epoch` for `turn_id`; nil otherwise.
local function read_lease(keys, worker, turn_id, epoch)
  local agent = read_agent(keys)
  if agent.state ~= 'leased' or agent.owner ~= worker or agent.epoch ~= epoch then
    return nil
  end
  local texts = ask('LRANGE', keys.backlog, '0', '1')
  if not texts[1] or string.find(texts[1], turn_id .. ' ', 1, true) ~= 1 then
    return nil
  end
  return agent, texts[1], backlog_entry(texts[2])
end

-- An event in its envelope: version 1, then MessagePack.
local function envelope(event)
  return string.char(1) .. cmsgpack.pack(event)
end

-- The End of a turn that no worker ended.
local function ending(outcome, reason, enqueued_ms)
  -- Not below 0 where the server's clock was set back: readers expect whole numbers.
  local waited_ms = math.max(0, NOW - enqueued_ms)
  local timing = {queued_ms = waited_ms, total_ms = waited_ms}
  return envelope({kind = 'end', outcome = outcome, error = reason, timing = timing})
end

-- The moment `ms` milliseconds from now, as text. A call asks for few different ones.
local moments = {}

local function after_now(ms)
  moments[ms] = moments[ms] or whole(NOW + tonumber(ms))
  return moments[ms]
end

-- The turn's own part of its end. Fields of `c`: keys, agent (id), entry (its place in the backlog: text, turn, priority),
-- has_deadline, attempts, epoch, published, outcome, reason (of a dead letter), event (End in its envelope), transcript (entry in
-- its envelope or nil), new_session, reply (the whole reply in its envelope, or nil), stream_ttl_ms, outcome_ttl_ms.
local function end_turn(c)
  local keys, turn = c.keys, c.entry.turn
  -- The first write: if the key is of a wrong type, it is the only one that fails. All others go to keys that were
  -- read, or of which any type will do.
  if c.transcript and c.outcome == 'completed' and not is_lone(c.agent) then
    if c.new_session then
      expect(keys.transcript, 'list')
      redis.call('DEL', keys.transcript)
    end
    ask('RPUSH', keys.transcript, c.transcript)
  end
  -- The bumped epoch refuses everything a worker may still append.
  redis.call('XADD', keys.result, whole(c.epoch + 1) .. '-' .. whole(c.published), 'event', c.event, 'at', NOW_TEXT)
  redis.call('PEXPIRE', keys.result, c.stream_ttl_ms)
  local dead = c.outcome == 'failed'
  redis.call('HSET', keys.turn, 'state', 'ended', 'outcome', c.outcome, 'end', c.event, 'epoch', whole(c.epoch),
    'ended_ms', NOW_TEXT, 'reply', c.reply or '')
  if not dead then
    redis.call('HSET', keys.turn, 'envelope', '')
  end
  -- Real sizes: a reply with log-probabilities takes a hundred times what its text does.
  local turn_bytes, stream_bytes = bytes_of_key(keys.turn, '0') + ENDED_OVERHEAD_BYTES, bytes_of_key(keys.result, '5')
  if dead then
    -- Kept, with its envelope, until somebody replays or purges it, or dead letters take too much.
    local bytes = turn_bytes + stream_bytes
    redis.call('XADD', DEAD, '*', 'turn', turn, 'agent', c.agent, 'reason', c.reason, 'attempts', c.attempts, 'bytes', bytes)
    count('dead_bytes', bytes)
  else
    redis.call('PEXPIRE', keys.turn, c.outcome_ttl_ms)
    local stream = turn .. ' ' .. whole(stream_bytes)
    table.insert(ended, turn .. ' ' .. NOW_TEXT .. ' ' .. whole(turn_bytes) .. ' ' .. whole(stream_bytes))
    -- The stream goes before the rest.
    table.insert(streams, after_now(c.stream_ttl_ms))
    table.insert(streams, stream)
    count('retained_bytes', turn_bytes + stream_bytes)
  end
  if c.has_deadline then
    table.insert(past_deadlines, c.agent .. ' ' .. c.entry.text)
  end
  if keys.idem ~= keys.turn then
    redis.call('PEXPIRE', keys.idem, c.outcome_ttl_ms)
  end
  count('ended:' .. c.outcome, 1)
  count('open:' .. c.entry.priority, -1)
  count(tenant_of(c.agent) .. ':open', -1)
  redis.call('XADD', EVENTS, 'MAXLEN', '~', MAX_EVENTS, '*', 'turn', turn, 'agent', c.agent, 'event', c.event)
end

-- Fields of an agent that say what is stored of its K and V, and which lease said so: later ones of earlier leases are
-- ignored.
local function manifest_fields(manifest, epoch)
  return 'manifest', manifest, 'manifest_epoch', whole(epoch)
end

-- Ends the head of the backlog. Further fields of `c`: found (the agent as read), following (the turn behind, or nil),
-- keep_ticket (the caller's worker goes on with the agent), continues (how often in a row it then did), manifest (in its
-- envelope; nil or '': the old one stays, or goes together with its history). Every check comes before.
local function conclude(c)
  local keys, found, following = c.keys, c.found, c.following
  end_turn(c)
  redis.call('LPOP', keys.backlog)
  unlease(c.agent, found)
  note_head(c.agent, following)
  local manifest, epoch = c.manifest or '', whole(c.epoch + 1)
  if manifest ~= '' or (c.new_session and c.outcome == 'completed') then
    redis.call('HSET', keys.agent, manifest_fields(manifest, c.epoch))
  end
  if c.outcome == 'failed' and found.on_dead == 'halt' then
    found.hold = found.hold or 'halted'
  end
  -- A ticket of another priority would let the turn behind jump its queue, or wait in the wrong one.
  local goes_on = c.keep_ticket and following and not found.hold and following.not_before_ms <= NOW
    and following.priority == found.priority
  if goes_on then
    redis.call('HSET', keys.agent, 'state', 'ready', 'owner', '', 'continues', whole(c.continues or 0),
      'epoch', epoch, 'delivery', '')
    return true
  end
  if found.ticket and READY[found.priority] then
    drop_ticket(READY[found.priority], found.ticket)
  end
  make_runnable(keys.agent, c.agent, found, following, 'epoch', epoch, 'delivery', '')
  return false
end
