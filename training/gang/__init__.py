"""A gang: a Ray Train run whose workers stay warm and serve one trial after another.

The only import of Ray in `training`. The owner of a gang (a Tune trainable) holds a `Gang`;
its rank 0 asks the gang's channel for orders and answers there; all ranks obey together. A
worker group that Ray Train has restarted greets again and is given its trial once more,
which goes on from its newest checkpoint. When the owner dies its channel dies with it, and
then the workers leave.
"""

from training.gang.messages import Ended, Failed, GangConfig, Order
from training.gang.owner import Gang

__all__ = ["Ended", "Failed", "Gang", "GangConfig", "Order"]
