"""Secure aggregation (Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine
Learning", CCS).

A model of its bytes: nothing is encrypted, masked or secret. The server of this harness still sees each update,
training keeps its bits and the counted bytes stay what they are; what the protocol would add is told beside them.

Read: the abstract; from memory the protocol (the paper's Fig. 4) and its performance analysis (Sec. 7), by which a
user sends and receives 2 n a_K + (5 n - 4) a_S + m ceil(log2 R) bits: n users, keys of a_K bits, shares of a_S, m
entries, sums modulo R = n (2^b - 1) + 1, so that n values of b bits cannot overflow. The expansions that the
abstract has follow, and are a test: 1.73 for 2^10 users and 2^20 entries of 16 bits, 1.98 for 2^14 and 2^24.

Ours: values are weighted by their client's samples before they are masked, and the number of samples is masked
like an entry. A client that is lost is lost when it has shared its keys, and before its masked input. Where fewer
than the threshold come back the sum could not be unmasked, and a sum of one hides nobody: such rounds are told as
`failed_rounds`, while the run goes on.

Left out: signatures and the consistency check against a server that lies (round 3), headers of ciphertexts, lists
of who is there, what cryptography computes; that a client could clip by itself, so `dp_fedavg` is refused.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Annotated

from pydantic import Field

from fedbench.config.schema import Config
from fedbench.encoders import num_blocks
from fedbench.encoders.tensor_groups import ALL, beside, group_of, groups_of, travelling
from fedbench.errors import UserError
from fedbench.federation import Codec, Mechanism, Strategy, Way, load_mechanisms, load_strategy
from fedbench.federation.experiment import check
from fedbench.federation.messages import message_specs
from fedbench.federation.participation import participation
from fedbench.federation.shipment import describe
from fedbench.training.model import build_model

NAMES = "advertise_keys", "share_keys", "masked_input", "unmasking"  # rounds 0, 1, 2 and 4 of the protocol
REFUSED = {  # hooks, and what one that does something says of who would have to see what
    "receive": "needs every single update on the server",
    "visit_plan": "lets clients send unlike entries, of which there is no one sum",
    "ends_stage": "ends stages where only the run knows",
}


@dataclass(frozen=True)
class SecureAggregation(Mechanism):
    """What one client sends and receives more in a round of n clients and m uploaded entries, in bytes:

    - advertise keys: 2 n a_K, two public keys to the server and those of n - 1 others back
    - share keys: 4 (n - 1) a_S, shares of its seed and of its key for each other, and theirs
    - masked input: ((m + 1) ceil(log2(n (2^b - 1) + 1)) - m b) / 8, what the sum's field and the weight take
    - unmasking: n a_S, one share of each client

    `secure_aggregation/..._bytes` are sums over the rounds so far, of the mean registered client. They are in no
    other figure: traffic is counted as it travels.
    """

    key_bytes: Annotated[int, Field(ge=1, le=10_000)] = 32
    """a_K, of a public key; 32 (256 bits) in the paper's figures."""
    share_bytes: Annotated[int, Field(ge=1, le=10_000)] = 32
    """a_S, of an encrypted share of a secret; 32 in the paper's figures."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 2 / 3
    """Share of the drawn clients that have to come back for a sum to be unmasked."""
    value_bits: Annotated[int, Field(ge=1, le=64)] = 32
    """b, of an entry before it is masked; 32 as counted. With fewer the masked input is compared with fewer."""

    def check(self, config: Config) -> None:
        """Refuse what the sum of masked updates is not enough for."""
        for fault in _faults(config):
            raise UserError(f"strategy.secure_aggregation with {fault}")

    def figures(self, config: Config, rounds: int) -> Mapping[str, float]:
        """Bytes by part and together, and rounds from which too few clients came back."""
        total, failed = Counter[str](), 0
        for one in _rounds(config.model_dump_json())[:rounds]:
            for name, num_bytes in self.of_round(*one).items():
                total[name] += num_bytes
            failed += one[1] < max(2, ceil(self.threshold * one[0]))
        parts = {f"{name}_bytes": total[name] / config.federation.num_clients for name in NAMES}
        told = {**parts, "model_bytes": sum(parts.values()), "failed_rounds": failed}
        return {f"secure_aggregation/{name}": float(value) for name, value in told.items()}

    def of_round(self, drawn: int, returned: int, entries: int) -> dict[str, int]:
        """All clients' bytes by part, of a round in which `returned` of `drawn` clients send so many entries."""
        one = dict(zip(NAMES, self.of_client(drawn, entries), strict=True))
        times = {"masked_input": returned, "unmasking": returned}
        return {name: num_bytes * times.get(name, drawn) for name, num_bytes in one.items()}

    def of_client(self, drawn: int, entries: int) -> tuple[int, int, int, int]:
        """The bytes of a client that comes back, in the order of `NAMES`."""
        field_bits = (drawn * (2**self.value_bits - 1)).bit_length()  # ceil(log2(x + 1)) of a whole x
        masked, plain = (entries + 1) * field_bits, entries * self.value_bits
        return (
            2 * drawn * self.key_bytes,
            4 * (drawn - 1) * self.share_bytes,
            ceil(masked / 8) - ceil(plain / 8),
            drawn * self.share_bytes,
        )


@cache
def _rounds(config: str) -> list[tuple[int, int, int]]:
    """Of each round of a run: clients drawn, of those that come back, and entries that one of these sends."""
    parsed = Config.model_validate_json(config)
    strategy, mechanisms, plans, rounds_per_stage = check(parsed, tried=True)
    found: list[tuple[int, int, int]] = []
    for plan, rounds in zip(plans, rounds_per_stage, strict=True):
        model = describe(build_model(parsed, plan.depth))
        specs = {**model, **travelling(message_specs(mechanisms, model, plan.trained_groups, parsed), "upload")}
        sent = {*plan.uploaded_groups, ALL}
        entries = sum(spec.numel for key, spec in specs.items() if beside(group_of(key)) in sent)
        for _ in range(rounds):
            drawn = participation(parsed, len(found), strategy.clients)
            lost = len(drawn.lost_before | drawn.lost_after)
            found.append((len(drawn.drawn), len(drawn.drawn) - lost, entries))
    return found


def _faults(config: Config) -> Iterator[str]:
    strategy, mechanisms = load_strategy(config.strategy), load_mechanisms(config.strategy)
    name = f"strategy={config.strategy['name']}"
    if type(strategy).aggregate is not Strategy.aggregate:
        yield f"{name}, which aggregates by a rule of its own; allowed: a weighted sum"
    if type(strategy).visit_plan is not Strategy.visit_plan:
        yield f"{name}, which {REFUSED['visit_plan']}; allowed: one plan for all"
    if type(strategy).clients is not Strategy.clients:
        yield f"{name}, which chooses clients; allowed: all, or drawn ones"
    for one in mechanisms:
        for hook, why in REFUSED.items():
            if getattr(type(one), hook) is not getattr(Mechanism, hook):
                yield f"{type(one).__name__}, which {why}; allowed: without"
        if type(one).messages is not Mechanism.messages and _sends_apart(one, config):
            yield f"{type(one).__name__}, whose messages the server has to see one by one; allowed: sums"
        if isinstance(one, Codec) and any(one.works(Way("upload", tier)) for tier in range(one.num_tiers)):
            yield (
                f"{type(one).__name__} on the way up, whose payloads cannot be added before they are unpacked; "
                "allowed: a codec that leaves the upload alone"
            )


def _sends_apart(mechanism: Mechanism, config: Config) -> bool:
    """Whether what it sends is put together rather than summed."""
    model = describe(build_model(config, num_blocks(config.encoder)))
    return any(spec.direction for spec in message_specs([mechanism], model, groups_of(model), config).values())
