"""What the models' tests share."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # test modules import `decoder_zoo` and `decoder_files` by plain name
