"""What an agent is made of, and who it is."""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from edge_agent.board.pace import Pace
from edge_agent.board.problems import Problems
from edge_agent.board.warm_children import WarmChildren
from edge_agent.inbox.sample_inbox import SampleInbox
from edge_agent.inference.inference_process import InferenceProcess, NoInference
from edge_agent.releases.downlink import Downlink
from edge_agent.releases.model_slots import Slots
from edge_agent.reports.heartbeat import Heartbeat
from edge_agent.reports.status_file import LocalStatus
from edge_agent.samples.sample_store import Samples
from edge_agent.training.governor import Vitals
from edge_agent.training.learner import Learner
from edge_agent.updates.outbox import Outbox
from edge_agent.updates.uplink import Uplink
from models.protocol.messages import Request
from models.protocol.topics import Topics
from models.transport.link import Link

__all__ = ["Identity", "Parts"]


class Identity(NamedTuple):
    """Who this agent is, as its status says."""

    device: str
    task: str
    installation: str
    boot: int
    run: str  # of this process, drawn at its start
    version: str


class Parts(NamedTuple):
    """What an agent is made of."""

    link: Link
    topics: Topics
    identity: Identity
    outbox: Outbox
    slots: Slots
    samples: Samples
    inbox: SampleInbox
    learner: Learner
    inference: InferenceProcess | NoInference
    downlink: Downlink
    uplink: Uplink
    problems: Problems
    heartbeat: Heartbeat
    requests: deque[Request]  # what uplink and downlink want to ask the server
    warm: WarmChildren | None
    vitals: Callable[[], Vitals]
    pace: Pace
    on_status: Callable[[LocalStatus], None]  # for whoever looks at the state directory
