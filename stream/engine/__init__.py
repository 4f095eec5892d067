"""Owning partitions exactly once: the only code besides app.py that imports faust or aiokafka.

service.py      one group consumer and its poll loop; a Service that the Faust app starts
partition.py    the life of one owned partition, from the fence to the close, over interfaces
kafka_log.py    those interfaces over aiokafka: transactions, the changelog, offsets
store.py        rows of one partition in RocksDB, with the changelog position they stand at
scorer.py       micro-batches merged across partitions, scored in the model's own thread
tables.py       the rows as a read-only Faust table
requirements.py what is relied on beyond the public interfaces, checked at start
"""
