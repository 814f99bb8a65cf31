# Sources the parts of this directory. For deploy/*.sh and tests/run.sh.
# shellcheck shell=bash disable=SC1091

_lib=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
for _part in ui machine versions lock packages docker toolchain tools rust base images sandbox images-lock external daemon settings operator; do
  # shellcheck source=/dev/null
  . "$_lib/$_part.sh"
done
unset _lib _part
