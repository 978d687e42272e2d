-- The one ending of a turn, shared by every step that ends one, and the keys of an agent and one of its turns.
--
-- KEYS after the shared ones, for each item: agent, backlog, transcript, turn, result,
--      idem (the turn key again where the turn has no idempotency key), parked

local ITEM = 7
local MAX_EVENTS = 10000
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

local AGENT_FIELDS = {'state', 'ticket', 'priority', 'owner', 'epoch', 'delivery', 'hold', 'on_dead', 'continues',
  'manifest', 'place', 'unleasable'}

local function read_agent(keys)
  return fields(keys.agent, unpack(AGENT_FIELDS))
end

-- The first turn of the backlog, and the text of the one behind; nil where there is none.
local function read_backlog(keys)
  local texts = ask('LRANGE', keys.backlog, 0, 1)
  return texts[1] and backlog_entry(texts[1]), texts[2]
end

-- The agent, its head and the turn behind, where `worker` holds the lease of `epoch` for `turn_id`; nil otherwise.
local function read_lease(keys, worker, turn_id, epoch)
  local agent = read_agent(keys)
  if agent.state ~= 'leased' or agent.owner ~= worker or agent.epoch ~= epoch then
    return nil
  end
  local head, following = read_backlog(keys)
  if not head or head.turn ~= turn_id then
    return nil
  end
  return agent, head, following and backlog_entry(following)
end

-- The result stream's top id as two numbers: the epoch that wrote it and the tokens published by then.
local function result_top(keys)
  local last = ask('XREVRANGE', keys.result, '+', '-', 'COUNT', 1)[1]
  if not last then
    return 0, 0
  end
  return split_id(last[1])
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

-- The turn's own part of its end. Fields of `c`: keys, agent (id), entry (its place in the backlog), attempts, epoch,
-- published, outcome, reason (of a dead letter), event (End in its envelope), transcript (entry in its envelope or
-- nil), new_session, reply (the whole reply in its envelope, or nil), stream_ttl_ms, outcome_ttl_ms.
local function end_turn(c)
  local keys = c.keys
  -- The first write: where the key is of a wrong type, it is the only one that fails. All others go to keys that were
  -- read, or of which any type will do.
  if c.transcript and c.outcome == 'completed' and not is_lone(c.agent) then
    if c.new_session then
      expect(keys.transcript, 'list')
      redis.call('DEL', keys.transcript)
    end
    ask('RPUSH', keys.transcript, c.transcript)
  end
  -- The bumped epoch refuses everything a worker may still append.
  local id = whole(c.epoch + 1) .. '-' .. whole(c.published)
  redis.call('XADD', keys.result, id, 'event', c.event, 'at', whole(NOW))
  redis.call('PEXPIRE', keys.result, c.stream_ttl_ms)
  local dead = c.outcome == 'failed'
  redis.call('HSET', keys.turn, 'state', 'ended', 'outcome', c.outcome, 'end', c.event, 'epoch', whole(c.epoch),
    'ended_ms', whole(NOW), 'reply', c.reply or '', unpack(dead and {} or {'envelope', ''}))
  -- Real sizes: a reply with log-probabilities takes a hundred times what its text does.
  local turn_bytes, stream_bytes = bytes_of_key(keys.turn, 0) + ENDED_OVERHEAD_BYTES, bytes_of_key(keys.result, 5)
  if dead then
    -- Kept, with its envelope, until somebody replays or purges it, or dead letters take too much.
    local bytes = turn_bytes + stream_bytes
    redis.call('XADD', DEAD, '*', 'turn', c.entry.turn, 'agent', c.agent, 'reason', c.reason, 'attempts', c.attempts,
      'bytes', bytes)
    count('dead_bytes', bytes)
  else
    redis.call('PEXPIRE', keys.turn, c.outcome_ttl_ms)
    local text = c.entry.turn .. ' ' .. whole(NOW) .. ' ' .. turn_bytes .. ' ' .. stream_bytes
    table.insert(ended, text)
    -- The stream goes before the rest.
    table.insert(streams, whole(NOW + tonumber(c.stream_ttl_ms)))
    table.insert(streams, c.entry.turn .. ' ' .. stream_bytes)
    count('retained_bytes', turn_bytes + stream_bytes)
  end
  table.insert(past_deadlines, c.agent .. ' ' .. c.entry.text)
  if keys.idem ~= keys.turn then
    redis.call('PEXPIRE', keys.idem, c.outcome_ttl_ms)
  end
  count('ended:' .. c.outcome, 1)
  count('open:' .. c.entry.priority, -1)
  count(tenant_of(c.agent) .. ':open', -1)
  redis.call('XADD', EVENTS, 'MAXLEN', '~', MAX_EVENTS, '*', 'turn', c.entry.turn, 'agent', c.agent, 'event', c.event)
end

-- No worker has the agent any more: its place among those of its tenant is free.
local function unlease(agent, found)
  if found.state == 'leased' then
    count(tenant_of(agent) .. ':leased', -1)
  end
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
  local manifest, more = c.manifest or '', {'epoch', whole(c.epoch + 1), 'delivery', ''}
  if manifest ~= '' or (c.new_session and c.outcome == 'completed') then
    more = {'epoch', whole(c.epoch + 1), 'delivery', '', manifest_fields(manifest, c.epoch)}
  end
  end_turn(c)
  redis.call('LPOP', keys.backlog)
  unlease(c.agent, found)
  note_head(c.agent, following)
  if c.outcome == 'failed' and found.on_dead == 'halt' then
    found.hold = found.hold or 'halted'
  end
  -- A ticket of another priority would let the turn behind jump its queue, or wait in the wrong one.
  local goes_on = c.keep_ticket and following and not found.hold and following.not_before_ms <= NOW
    and following.priority == found.priority
  if goes_on then
    redis.call('HSET', keys.agent, 'state', 'ready', 'owner', '', 'continues', c.continues or 0, unpack(more))
    return true
  end
  if found.ticket and READY[found.priority] then
    drop_ticket(READY[found.priority], found.ticket)
  end
  make_runnable(keys.agent, c.agent, found, following, unpack(more))
  return false
end
