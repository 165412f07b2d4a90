"""The Python SDK over libquire.so: vLLM's scripts with one import changed."""
import asyncio
import os
import sys

import pytest
from conftest import ROOT, binary_path, model_path

sys.path.insert(0, str(ROOT / "python"))


@pytest.fixture(scope="module")
def quire():
    library = os.path.join(os.path.dirname(binary_path()), "libquire.so")
    if not os.path.exists(library):
        pytest.skip(f"no library at {library}: run make")
    os.environ["QUIRE_LIBRARY"] = library
    import quire

    return quire


@pytest.fixture(scope="module")
def llm(quire):
    with quire.LLM(model=model_path(), max_model_len=512, max_num_seqs=8, kv_cache_memory_bytes=64 << 20) as llm:
        yield llm


def greedy(quire, **more):
    return quire.SamplingParams(temperature=0, **more)


def test_generate_keeps_the_order_and_answers_the_same_in_a_batch(quire, llm):
    prompts = ["The capital of France is", "1, 2, 3, 4,", "The capital of France is"]
    params = greedy(quire, max_tokens=12)
    together = llm.generate(prompts, params, use_tqdm=False)
    alone = [llm.generate(p, params, use_tqdm=False)[0] for p in prompts]
    assert [o.outputs[0].token_ids for o in together] == [o.outputs[0].token_ids for o in alone]
    assert "Paris" in together[0].outputs[0].text
    assert together[0].prompt == prompts[0] and together[0].finished
    assert all(o.outputs[0].finish_reason == "length" for o in together)


def test_ids_dicts_and_text_are_the_same_prompt(quire, llm):
    ids = llm.get_tokenizer().encode("Once upon a time")
    params = greedy(quire, max_tokens=6)
    texts = [llm.generate(p, params, use_tqdm=False)[0].outputs[0].text
             for p in ("Once upon a time", ids, {"prompt_token_ids": ids}, {"prompt": "Once upon a time"})]
    assert len(set(texts)) == 1


def test_chat_logprobs_and_samples(quire, llm):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    output = llm.chat(messages, greedy(quire, max_tokens=20, logprobs=3, prompt_logprobs=1), use_tqdm=False)[0]
    best = output.outputs[0]
    assert "Paris" in best.text
    assert len(best.logprobs) == len(best.token_ids) and all(3 <= len(row) <= 4 for row in best.logprobs)
    assert best.cumulative_logprob == pytest.approx(sum(row[t].logprob for row, t in zip(best.logprobs, best.token_ids)))
    assert output.prompt_logprobs[0] is None and len(output.prompt_logprobs) == len(output.prompt_token_ids)
    three = llm.generate("Hello", quire.SamplingParams(n=3, seed=7, max_tokens=5), use_tqdm=False)[0].outputs
    again = llm.generate("Hello", quire.SamplingParams(n=3, seed=7, max_tokens=5), use_tqdm=False)[0].outputs
    assert [o.index for o in three] == [0, 1, 2] and [o.token_ids for o in three] == [o.token_ids for o in again]


def test_stops_say_what_stopped(quire, llm):
    text = llm.generate("1, 2, 3, 4,", greedy(quire, max_tokens=20, stop=[" 6"]), use_tqdm=False)[0].outputs[0]
    assert text.finish_reason == "stop" and text.stop_reason == " 6" and " 6" not in text.text


def test_wrong_values_are_exceptions_with_the_reason(quire, llm):
    with pytest.raises(ValueError, match="temperature"):
        quire.SamplingParams(temperature=float("nan"))
    with pytest.raises(ValueError, match="99999999"):
        llm.generate([1, 2, 99999999], greedy(quire), use_tqdm=False)
    with pytest.raises(quire.QuireError, match="No such file"):
        quire.LLM(model="/no/such/model")
    with pytest.raises(ValueError, match="tensor_parallel_size"):
        quire.EngineArgs(model="x", tensor_parallel_size=0)
    with pytest.raises(quire.QuireError, match="9 query heads"):
        quire.LLM(model=model_path(), tensor_parallel_size=2)


def test_ranks_answer_as_one_does(quire, llm):
    with quire.LLM(model=model_path(), tensor_parallel_size=3, max_model_len=256, max_num_seqs=4) as three:
        params = greedy(quire, max_tokens=8)
        prompts = ["The capital of France is", "1, 2, 3, 4,"]
        assert [o.outputs[0].text for o in three.generate(prompts, params, use_tqdm=False)] == [
            o.outputs[0].text for o in llm.generate(prompts, params, use_tqdm=False)]


def test_the_tokenizer_round_trips_and_renders(llm):
    tokenizer = llm.get_tokenizer()
    text = "Grüße, 世界! \n def f(x):"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    messages = [{"role": "user", "content": "Hi"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered.endswith("<|im_start|>assistant\n")
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True) == tokenizer.encode(rendered, add_special_tokens=False)


def test_async_streams_aborts_and_cancels(quire):
    async def run():
        args = quire.AsyncEngineArgs(model=model_path(), max_model_len=512, max_num_seqs=8, kv_cache_memory_bytes=64 << 20)
        engine = quire.AsyncLLMEngine.from_engine_args(args)
        params = quire.SamplingParams(temperature=0, max_tokens=24)

        async def follow(i):
            seen = [o async for o in engine.generate(f"Number {i % 3}:", params, request_id=str(i))]
            for before, after in zip(seen, seen[1:]):
                assert after.outputs[0].text.startswith(before.outputs[0].text)
            return seen[-1].outputs[0].text

        texts = await asyncio.gather(*[follow(i) for i in range(12)])
        assert texts[:3] * 4 == list(texts)

        delta = quire.SamplingParams(temperature=0, max_tokens=24, output_kind=quire.RequestOutputKind.DELTA)
        pieces = [o.outputs[0].text async for o in engine.generate("Number 0:", delta)]
        assert "".join(pieces) == texts[0]

        endless = quire.SamplingParams(max_tokens=400, ignore_eos=True)

        async def consume(request_id):
            last = None
            async for last in engine.generate("Once", endless, request_id=request_id):
                pass
            return last

        cancelled = asyncio.create_task(consume("cancelled"))
        aborted = asyncio.create_task(consume("aborted"))
        await asyncio.sleep(0.3)
        cancelled.cancel()
        await engine.abort("aborted")
        assert (await aborted).outputs[0].finish_reason == "abort"
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        for _ in range(100):
            if engine._engine.stats().running == 0:
                break
            await asyncio.sleep(0.05)
        assert engine._engine.stats().running == 0
        await engine.check_health()
        engine.shutdown()

    asyncio.run(run())
