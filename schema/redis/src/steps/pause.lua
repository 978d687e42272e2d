-- Pauses or resumes the queue.
--
-- KEYS 1 paused
-- ARGV 1 '1': no turn is leased until it is resumed; '0': turns are leased again
-- Reply 1 if that changed anything, 0 otherwise

if ARGV[1] == '0' then
  return redis.call('DEL', KEYS[1])
end
return redis.call('SET', KEYS[1], '1', 'NX') and 1 or 0
