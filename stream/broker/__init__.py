"""A real Kafka for laptops and tests, and the topics on any Kafka.

    with Broker() as broker:
        client = {"bootstrap.servers": broker.bootstrap_servers}
        ensure_topics(client, [TopicSpec("clicks", partitions=8)])

``broker.py`` decides where the broker comes from: an address in the environment, Docker, Java with Maven.
``java_kafka.py`` and ``docker_kafka.py`` each run one broker for one data directory; ``jars.py`` fetches
Apache Kafka; ``client.py`` asks whether a broker answers; ``topics.py`` creates, checks and describes topics.
"""

from stream.broker.broker import Broker, BrokerStatus

__all__ = ["Broker", "BrokerStatus"]
