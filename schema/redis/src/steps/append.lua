-- Publishes a delta where Redis is full: what runs must come to its end, or nothing ever frees memory. Anywhere else a
-- plain XADD does the same.
--
-- KEYS 1 result
-- ARGV 1 entry id  2 event in its envelope  3 at (Unix ms)
-- Reply the entry id; nil where there is no stream

return redis.call('XADD', KEYS[1], 'NOMKSTREAM', ARGV[1], 'event', ARGV[2], 'at', ARGV[3])
