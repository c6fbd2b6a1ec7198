"""REST that fails is told by ``/health`` while the stream lives, in the vendor's words, until it answers."""

from typing import Any

import httpx

from tests.waiting import eventually

from .rig import WITHIN_S, Rig


async def test_rest_that_fails_in_a_lively_session_is_a_problem_until_it_answers(rig: Rig) -> None:
    (rig.signals / "l0_ready.flag").write_text('{"ready": true}')
    process = await rig.run()
    await rig.state("active", 3 * WITHIN_S)
    await rig.price()
    seen: Any = None

    async with rig.client() as client:

        async def told() -> list[str]:
            nonlocal seen
            try:
                seen = (await client.get("/health")).json()
            except httpx.TransportError:
                return []
            return [one for one in seen["problems"] if "vendor REST" in one]

        async def failing() -> str | None:
            return next(iter(await told()), None)

        async def answering() -> bool | None:
            return not await told() or None

        faults = f"{rig.simulator.rest_url}/_sim/faults"
        assert await told() == []
        await client.post(faults, json={"rest_status": "500"})
        problem = await eventually(failing, 3 * WITHIN_S, lambda: str(seen))
        assert "The vendor answered 500: " in problem
        assert seen["status"] == "degraded"
        assert seen["service_info"]["status"] == "active"
        await client.delete(faults)
        await eventually(answering, 3 * WITHIN_S, lambda: str(seen))
    assert await process.stop() == 0
