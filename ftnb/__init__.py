"Fine-tune language models in notebooks, and end with a report that stands up."
import os

__version__ = "0.4.0"

if not os.path.exists("/dev/nvidiactl"):            # without a GPU DeepSpeed, where it is installed,
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # needn't look for one and say so in a report
