"""How long and how much memory: what the benchmarks share."""

import multiprocessing
import resource
import statistics
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

import torch
from terminaltables import GithubFlavoredMarkdownTable

from projects.core.files import dump_json

__all__ = ['in_process', 'median_seconds', 'peak_mb', 'show']


def median_seconds(work: Callable[[], object], repeats: int,
                   device: str = 'cpu', warm_up: int = 1,
                   clock: Callable[[], float] = time.perf_counter) -> float:
    """Median time of a piece of work (s), by CUDA's events on a GPU, else by
    the clock."""
    cuda = torch.device(device).type == 'cuda'
    times = []
    for _ in range(warm_up):
        work()
    if cuda:
        torch.cuda.synchronize()
    for _ in range(repeats):
        if cuda:
            begin, end = (torch.cuda.Event(enable_timing=True)
                          for _ in range(2))
            begin.record()
            work()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / 1000)
        else:
            start = clock()
            work()
            times.append(clock() - start)
    return statistics.median(times)


def peak_mb(device: str = 'cpu', anew: bool = False) -> float:
    """Most memory that this process has had (MB): what tensors took on a GPU,
    else all of its resident memory.

    Args:
        device (str): Torch device.
        anew (bool): From now on, from what it has now.
    """
    if torch.device(device).type == 'cuda':
        if anew:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path('/proc/self/status')
    if not status.is_file():  # not Linux: never anew
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if anew:
        Path('/proc/self/clear_refs').write_text('5')
    return int(status.read_text().split('VmHWM:')[1].split()[0]) / 1024


def _answer(queue, threads: int, gpu_gb: Optional[float],
            function: Callable, args: tuple) -> None:
    torch.set_num_threads(threads)
    if gpu_gb:
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(gpu_gb / total, 1.))
    try:
        queue.put(function(*args))
    except torch.OutOfMemoryError:
        queue.put(dict(failed='out of memory'))


def in_process(function: Callable, *args, threads: int = 1,
               gpu_gb: Optional[float] = None) -> Dict:
    """What a function returns in a new process, whose memory is its own.

    Args:
        function (Callable): Of a module, with arguments that can be pickled.
        *args: Its arguments.
        threads (int): Of torch.
        gpu_gb (float, optional): What the process may take of a GPU's memory
            (GiB), to stand for a smaller one.

    Raises:
        RuntimeError: The process ended without an answer.
    """
    context = multiprocessing.get_context('spawn')
    queue = context.SimpleQueue()
    process = context.Process(
        target=_answer, args=(queue, threads, gpu_gb, function, args))
    process.start()
    while queue.empty() and process.is_alive():
        time.sleep(.05)
    answer = None if queue.empty() else queue.get()
    process.join()
    if answer is None:
        raise RuntimeError(f'{function.__name__}: expected an answer, found '
                           f'exit status {process.exitcode}')
    return answer


def show(rows: List[Dict], columns: Sequence[str], out: Optional[Path],
         **about) -> None:
    """Print a table of some of the rows' entries, write all as JSON."""

    def text(value) -> str:
        if isinstance(value, float):
            return f'{value:.0f}' if value >= 100 else f'{value:.3g}'
        return '-' if value is None else str(value)

    print(GithubFlavoredMarkdownTable(
        [list(columns), *([text(r.get(c)) for c in columns] for r in rows)]
    ).table)
    if out:
        dump_json(dict(about, torch=torch.__version__, rows=rows), out)
