"""How fast each model is in each lane, measured on the batches that it computes.

    speeds.note(model, tokens=1_000, seconds=0.02, is_bulk=False)
    speeds.seconds(model, 5_000, is_bulk=False)         # 0.1
    speeds.policy(model, is_bulk=False).token_budget    # what takes `target_seconds`

Models differ by a factor of a hundred. The lanes of one model differ too: long texts take more time per
token, and so do batches that are not full.
"""

from __future__ import annotations

import math
import time
from weakref import WeakKeyDictionary

from services.encoder import metrics
from services.encoder.batching import BatchPolicy, EngineModel

# The speed is measured on batches that fill this share of the token budget; small batches are less efficient.
_MEASURED_BATCH_SHARE = 0.25
_SPEED_SMOOTHING = 0.2
# The lanes' shares of time are those of about so many seconds.
_RECENT_SECONDS = 2.0
# Without any measurement, work is compared by its tokens.
_UNKNOWN_TOKENS_PER_SECOND = 1.0


class ModelSpeeds:
    """Speeds, batch budgets and the load of the engine. Not safe to call from several threads.

    Models that nobody else refers to are forgotten.
    """

    def __init__(self, policy: BatchPolicy) -> None:
        self._policy = policy
        self._measured: WeakKeyDictionary[EngineModel, dict[bool, float]] = WeakKeyDictionary()
        self._limits: WeakKeyDictionary[EngineModel, int] = WeakKeyDictionary()
        self._interactive_share = 0.0
        self._share_at = time.monotonic()

    def is_known(self, model: EngineModel, *, is_bulk: bool) -> bool:
        """Whether the speed was measured, in this lane or before the model served."""
        return self._tokens_per_second(model, is_bulk) is not None

    def seconds(self, model: EngineModel, tokens: int, *, is_bulk: bool) -> float:
        """How long the model computes so many tokens, in full batches."""
        return tokens / (self._tokens_per_second(model, is_bulk) or _UNKNOWN_TOKENS_PER_SECOND)

    def batch_seconds(self, model: EngineModel, *, is_bulk: bool) -> float:
        """How long a full batch takes."""
        return self.seconds(model, self.policy(model, is_bulk=is_bulk).token_budget, is_bulk=is_bulk)

    def policy(self, model: EngineModel, *, is_bulk: bool) -> BatchPolicy:
        """The policy with the token budget of this model in this lane."""
        policy = self._policy
        if (limit := self._limits.get(model)) is not None:
            policy = policy.limited(limit)
        speed = self._tokens_per_second(model, is_bulk)
        return policy if speed is None else policy.for_speed(speed)

    def lower_budget(self, model: EngineModel, token_budget: int) -> None:
        """Make no larger batches of this model from now on: a larger one did not fit into memory."""
        known = self._limits.get(model, self._policy.token_budget)
        self._limits[model] = max(1, min(known, token_budget))

    def note(self, model: EngineModel, tokens: int, seconds: float, *, is_bulk: bool) -> None:
        """Record a computed batch: its tokens, without padding, and how long it took."""
        if not is_bulk:
            self._interactive_share = self.interactive_share() + seconds / _RECENT_SECONDS
        budget_tokens = self.policy(model, is_bulk=is_bulk).token_budget
        is_small = tokens < _MEASURED_BATCH_SHARE * budget_tokens
        if is_small and self.is_known(model, is_bulk=is_bulk):
            return
        speed = tokens / max(seconds, 1e-6)
        of_lane = self._measured.setdefault(model, {})
        if known := of_lane.get(is_bulk) or model.tokens_per_second:
            speed = known + _SPEED_SMOOTHING * (speed - known)
        of_lane[is_bulk] = speed
        lane = "bulk" if is_bulk else "interactive"
        metrics.MODEL_TOKENS_PER_SECOND.labels(model.model_id, lane).set(speed)

    def interactive_share(self) -> float:
        """The recent share of time in which interactive batches ran."""
        now = time.monotonic()
        self._interactive_share *= math.exp((self._share_at - now) / _RECENT_SECONDS)
        self._share_at = now
        return min(1.0, self._interactive_share)

    def _tokens_per_second(self, model: EngineModel, is_bulk: bool) -> float | None:
        of_lane = self._measured.get(model, {})
        return of_lane.get(is_bulk) or model.tokens_per_second or of_lane.get(not is_bulk)
