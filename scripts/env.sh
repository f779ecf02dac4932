# Sourced by the other scripts, or by you: exports PYTHON, a Python >= 3.10 that satisfies requirements.txt.
# That is $PYTHON or the active Python if it does, else .venv beside this folder, made and filled when needed; there
# the repository is installed too (pip install -e). An environment that is not ours is read, never written to.
# EQDIFF_REQUIREMENTS names another file of the repository, such as requirements-dev.txt.

EQDIFF_ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

eqdiff_error() {
  echo "error: $*" >&2
  return 2
}

# eqdiff_apart COMMAND ...: runs it in /, where nobody keeps modules. Python imports from the folder it is started in
# with -, -c and -m, so a stranger's packaging.py beside your photos would be run.
eqdiff_apart() {
  (cd / && "$@")
}

# eqdiff_find_program NAME: prints where the program is, so that it is found from any folder.
eqdiff_find_program() {
  local program
  program=$(command -v -- "$1") || return 1
  case $program in
    /*) echo "$program" ;;
    *) echo "$PWD/$program" ;;
  esac
}

# eqdiff_satisfies PYTHON FILE: whether this Python has what the requirements file asks; imports none of it.
eqdiff_satisfies() {
  eqdiff_apart "$1" - "$2" 2>/dev/null <<'PYTHON_CODE'
import sys
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement


def satisfied(file):
    for line in file.read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r"):
            if not satisfied(file.parent / line[2:].strip()):
                return False
        elif line:
            need = Requirement(line)
            asked = need.marker is None or need.marker.evaluate()
            if asked and not need.specifier.contains(version(need.name), prereleases=True):
                return False
    return True


sys.exit(sys.version_info < (3, 10) or not satisfied(Path(sys.argv[1])))
PYTHON_CODE
}

# eqdiff_base_python: prints a Python that can make the virtual environment.
eqdiff_base_python() {
  local name newest=
  for name in "${PYTHON:-}" python3 python python3.14 python3.13 python3.12 python3.11 python3.10; do
    [[ -n $name ]] && name=$(eqdiff_find_program "$name") || continue
    if eqdiff_apart "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      newest=$name
      if eqdiff_apart "$name" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "$name"
        return 0
      fi
    fi
  done
  if [[ -z $newest ]]; then
    eqdiff_error "no Python 3.10 or newer here: install one, or set PYTHON to its path, and run again"
  else
    eqdiff_error "$newest lacks the module venv: install it (Debian, Ubuntu: apt install python3-venv) and run again"
  fi
}

# eqdiff_path: lets Python import from the repository, installed or not. It is for scripts, not for your shell.
eqdiff_path() {
  export PYTHONUTF8=1 # names and prompts are UTF-8, whatever the locale says
  export PYTHONPATH=$EQDIFF_ROOT${PYTHONPATH:+:$PYTHONPATH}
}

# eqdiff_install FILE: brings .venv up to the requirements file and installs the repository in it as it lies here.
eqdiff_install() {
  local base venv=$EQDIFF_ROOT/.venv reason started=$SECONDS
  local log=$venv/install.log
  if ! eqdiff_apart "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    base=$(eqdiff_base_python) || return 2
    echo "making $venv" >&2
    if ! reason=$(eqdiff_apart "$base" -m venv --clear "$venv" 2>&1); then
      eqdiff_error "cannot make $venv with $base (${reason##*$'\n'}): make room or give write access, and run again"
      return 2
    fi
  fi
  echo "installing ${1##*/} into $venv: up to 6 GB, once; some minutes" >&2
  # one command: what builds the package is fetched first, so that without a network nothing is half done
  if ! (cd -- "$EQDIFF_ROOT" && "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
    -r "$1" -e .) >"$log" 2>&1; then
    reason=$(grep -o "ERROR: .*" "$log" | tail -n 1) || true
    eqdiff_error "pip could not install ${1##*/} (${reason:-stopped}): see $log; check network and disk, run again"
    return 2
  fi
  # pip compiles on one core, this on all; what is no Python of this version, as a template, stays as it is
  eqdiff_apart "$venv/bin/python" -m compileall -q -j 0 "$venv/lib" >/dev/null 2>&1 || true
  echo "installed in $((SECONDS - started)) s" >&2
}

eqdiff_find_python() {
  local name file=$EQDIFF_ROOT/${EQDIFF_REQUIREMENTS:-requirements.txt}
  for name in "${PYTHON:-}" python3 python "$EQDIFF_ROOT/.venv/bin/python"; do
    [[ -n $name ]] && name=$(eqdiff_find_program "$name") || continue
    if eqdiff_satisfies "$name" "$file"; then
      PYTHON=$name
      return 0
    fi
  done
  eqdiff_install "$file" || return 2
  PYTHON=$EQDIFF_ROOT/.venv/bin/python
}

# eqdiff_busy BEFORE AFTER: prints how many of how many cores were busy between two readings of /proc/stat. What runs
# with a lower priority (nice) leaves its core to others, and does not count.
eqdiff_busy() {
  local text name user nice system idle waiting irq softirq steal _ busy=0 all=0 sign=-1 cores
  for text in "$1" "$2"; do
    cores=0
    while read -r name user nice system idle waiting irq softirq steal _; do
      [[ $name =~ ^cpu[0-9]+$ ]] || continue
      cores=$((cores + 1))
      busy=$((busy + sign * (user + system + irq + softirq + steal)))
      all=$((all + sign * (user + system + irq + softirq + steal + nice + idle + waiting)))
    done <<<"$text"
    sign=1
  done
  echo "$((all > 0 ? (busy * cores + all / 2) / all : 0)) $cores"
}

# eqdiff_threads: leaves busy cores to whoever has them. torch's threads wait for one another at every operation, so
# that one of them on a busy core holds up all (benchmarks/shared_machine.py). OMP_NUM_THREADS, if set, stays.
eqdiff_threads() {
  local before busy cores
  [[ -z ${OMP_NUM_THREADS:-} && -r /proc/stat ]] || return 0
  before=$(</proc/stat)
  sleep 0.3
  read -r busy cores < <(eqdiff_busy "$before" "$(</proc/stat)") || return 0
  [[ $cores == "$(nproc 2>/dev/null)" ]] || return 0 # a part of a machine: whose cores are busy is not known
  ((busy > 0)) || return 0
  export OMP_NUM_THREADS=$((busy < cores ? cores - busy : 1))
  echo "note: $busy of $cores cores are busy: torch gets threads for $OMP_NUM_THREADS (export OMP_NUM_THREADS to choose)" >&2
}

# eqdiff_run SCRIPT [ARG ...]: runs a script of the repository in EQDIFF_PROCESSES processes (default 1), each on a GPU
# of its own, or all on the CPU where there is none. (`accelerate launch --cpu` would start one only, and say nothing.)
eqdiff_run() {
  local script=$EQDIFF_ROOT/$1 processes=${EQDIFF_PROCESSES:-1} gpus
  shift
  eqdiff_path
  if [[ $processes == 1 ]]; then
    exec "$PYTHON" "$script" "$@"
  elif ! [[ $processes =~ ^[1-9][0-9]*$ ]]; then
    eqdiff_error "EQDIFF_PROCESSES is '$processes': give a whole number from 1"
    return 2
  fi
  gpus=$(eqdiff_apart "$PYTHON" -c 'import torch; print(torch.cuda.device_count())') || return 1
  if ((gpus == 0)); then
    export ACCELERATE_USE_CPU=true
  elif ((gpus < processes)); then
    eqdiff_error "EQDIFF_PROCESSES is $processes, and there are $gpus GPUs: give at most that many"
    return 2
  fi
  exec "$PYTHON" "$EQDIFF_ROOT/scripts/launch.py" "$processes" "$script" "$@"
}

eqdiff_find_python || return 2
export PYTHON
