"""Sets of more objects than memory holds: listed on the disk, read shard by shard, by several machines if need be."""
