#!/bin/sh
# Installs the ICE client on Linux (systemd) or macOS, enrols the machine, and starts the client as a service.
# docs/rollout.md says how to use it. Run it as root. A second run changes nothing.
#
#   install-ice.sh --gateway URL --package PACKAGE --key-file FILE|- [OPTION ...]
#
#   --gateway URL      the gateway's base URL
#   --package PACKAGE  what pip installs: a wheel, a URL, a name; PIP_* variables and pip.conf apply
#   --key-file FILE|-  the secret of the enrolment key, needed until the machine is enrolled; - is standard input
#   --ca-file FILE     certificates (PEM) to trust besides the system's
#   --user NAME        the user of the ICE, for a key that lets the machine choose
#   --run-as NAME      the account that runs the client  [Linux: ice-client, made if missing; macOS: who is logged in]
#   --options TEXT     more options of `ice-client run`, with spaces between them
#   --python PROGRAM   Python 3.11 or newer that the client's account can run  [python3]
#   --wait SECONDS     how long to wait for the connection, at most 3600  [120]
#   --remove-key       delete the installed copy of the key once the ICE is connected
#   --no-start         install and enable, but neither enrol nor start: for an image
#
# Exit status: 0 connected (--no-start: installed), 1 failed, 2 wrong arguments, 3 refused: a person must act,
# 4 waits for an admin's approval, 5 not connected yet. After 4 and 5 the service goes on by itself.
set -eu
umask 022

program=/opt/ice-client
settings=/etc/ice-client
state=/var/lib/ice-client
key=$settings/enrolment-key
changed=

say() { printf 'install-ice: %s\n' "$*"; }
fail() { # STATUS SENTENCE
  status=$1
  shift
  say "$@" >&2
  exit "$status"
}
change() {
  changed=1
  say "changed: $*"
}

# --- arguments ---

gateway='' package='' key_file='' ca_file='' user='' run_as='' options='' python=python3 wait=120 remove_key='' start=1
while [ $# -gt 0 ]; do
  case $1 in
    --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --remove-key) remove_key=1; shift; continue ;;
    --no-start) start=; shift; continue ;;
  esac
  [ $# -ge 2 ] || fail 2 "$1 is unknown or needs a value; see --help"
  case $1 in
    --gateway) gateway=$2 ;;
    --package) package=$2 ;;
    --key-file) key_file=$2 ;;
    --ca-file) ca_file=$2 ;;
    --user) user=$2 ;;
    --run-as) run_as=$2 ;;
    --options) options=$2 ;;
    --python) python=$2 ;;
    --wait) wait=$2 ;;
    *) fail 2 "$1 is unknown; see --help" ;;
  esac
  shift 2
done

# Gateway and options become part of a unit or of a shell's command: nothing that either would interpret.
case $gateway in
  '') fail 2 '--gateway is missing' ;;
  *[!][A-Za-z0-9._:/~%-]*) fail 2 '--gateway is not a URL that the service can be given' ;;
  https://?* | http://?*) ;;
  *) fail 2 '--gateway must begin with https://' ;;
esac
case $options in *[!A-Za-z0-9._:/,=@+\ -]*) fail 2 '--options may have letters, digits and . _ : / , = @ + - only' ;; esac
case $run_as in -* | *[!A-Za-z0-9._-]*) fail 2 '--run-as is not the name of an account' ;; esac
case $wait in '' | *[!0-9]* | ?????*) fail 2 '--wait takes seconds, at most 3600' ;; esac
[ "$wait" -le 3600 ] || fail 2 '--wait takes seconds, at most 3600'
case $package in
  '') fail 2 '--package is missing' ;;
  -*) fail 2 '--package must not begin with -' ;;
  *://*)
    authority=${package#*://}
    case ${authority%%/*} in *:*@*) fail 2 '--package must not hold a password: use pip.conf or .netrc' ;; esac
    ;;
esac
case $package in
  *://*) file= ;;
  *.whl | */*) file=$package ;;
  *) file= ;; # a name
esac
for file in "$key_file" "$ca_file" "$file"; do
  case $file in '' | -) ;; *) [ -r "$file" ] || fail 2 "$file cannot be read" ;; esac
done
[ "$(id -u)" = 0 ] || fail 1 'run it as root'

system=$(uname -s)
case $system in
  Linux)
    command -v systemctl >/dev/null || fail 1 'there is no systemd'
    : "${run_as:=ice-client}"
    become="runuser -u $run_as --"
    ;;
  Darwin)
    : "${run_as:=$(stat -f %Su /dev/console)}"
    case $run_as in root | loginwindow | _mbsetupuser) fail 1 'nobody is logged in: name an account with --run-as' ;; esac
    become="sudo -n -H -u $run_as --"
    ;;
  *) fail 1 "$system is not supported" ;;
esac

# shellcheck disable=SC2086 # become is several words
as_user() (cd / && exec $become "$@")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# put FILE MODE OWNER: FILE gets what stands on standard input, at once or not at all.
put() {
  new=$(mktemp "$1.XXXXXX") # has mode 0600
  cat >"$new"
  if cmp -s "$new" "$1"; then
    rm -f "$new"
    chmod "$2" "$1"
    chown "$3" "$1"
  else
    chmod "$2" "$new"
    chown "$3" "$new"
    mv -f "$new" "$1"
    change "$1"
  fi
}

# --- account and program ---

"$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  fail 1 "$python is not Python 3.11 or newer with its venv module (Debian: apt install python3-venv)"
if ! id "$run_as" >/dev/null 2>&1; then
  [ "$system $run_as" = 'Linux ice-client' ] || fail 1 "there is no account $run_as"
  useradd --system --shell /usr/sbin/nologin ice-client
  change 'the account ice-client'
fi
{
  printf '%s' "$package" | cksum
  if [ -f "$package" ]; then cksum <"$package"; fi
} >"$work/installed"
if ! cmp -s "$work/installed" "$program/installed"; then
  # shellcheck disable=SC2086
  $become "$(command -v "$python")" -c '' 2>/dev/null ||
    fail 1 "the account $run_as cannot run $python, such as one in root's home: name another with --python"
  mkdir -p "${program%/*}"
  "$program/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$program" >&2 ||
    fail 1 "cannot make $program"
  "$program/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --upgrade "$package" >&2 ||
    fail 1 'pip could not install the package: it says why above'
  "$program/bin/ice-client" enrol --help >/dev/null 2>&1 || fail 1 'the package has no ice-client that can enrol'
  put "$program/installed" 0644 0:0 <"$work/installed"
fi

# --- key and certificates ---

uid=$(id -u "$run_as") gid=$(id -g "$run_as")
mkdir -p "$settings" "$state"
chown "0:$gid" "$settings"
chmod 0750 "$settings"
chown "$uid:$gid" "$state"
chmod 0700 "$state"

if [ ! -s "$state/token" ]; then
  case $key_file in
    '') [ -s "$key" ] || fail 2 '--key-file is missing: this machine is not enrolled yet' ;;
    -) put "$key" 0600 "$uid:$gid" ;;
    *) put "$key" 0600 "$uid:$gid" <"$key_file" ;;
  esac
fi
if [ -n "$ca_file" ]; then
  put "$settings/ca.pem" 0644 0:0 <"$ca_file"
  options="--ca-file $settings/ca.pem${options:+ $options}"
fi

# --- the service ---

shipped=$program/share/ice-client
if [ "$system" = Linux ]; then
  sed -e "s|--token-file /etc/ice-client/token|--enrolment-key-file $key|" -e "s|^User=.*|User=$run_as|" \
    "$shipped/ice-client.service" >"$work/service"
  put /etc/systemd/system/ice-client.service 0644 0:0 <"$work/service"
  # Other lines are the admin's, such as HTTPS_PROXY.
  {
    if [ -e "$settings/environment" ]; then sed '/^ICE_GATEWAY=/d; /^ICE_OPTIONS=/d' "$settings/environment"; fi
    printf 'ICE_GATEWAY=%s\nICE_OPTIONS=%s\n' "$gateway" "$options"
  } >"$work/environment"
  put "$settings/environment" 0640 "0:$gid" <"$work/environment"
  systemctl --quiet is-enabled ice-client 2>/dev/null || {
    systemctl --quiet enable ice-client
    change 'enabled the service'
  }
else
  command="$program/bin/ice-client run --gateway $gateway --enrolment-key-file $key --state-dir $state $options"
  sed "s|\"\$HOME/ice/bin/ice-client\" run --gateway [^ ]*|$command|" "$shipped/ice-client.plist" >"$work/service"
  # As the user: in the user's folders root would follow the user's links.
  # shellcheck disable=SC2016 # HOME is the user's
  as_user sh -c 'cmp -s - "$HOME/Library/LaunchAgents/ice-client.plist"' <"$work/service" || {
    # shellcheck disable=SC2016
    as_user sh -c 'cd "$HOME/Library" && mkdir -p LaunchAgents Logs && cat >LaunchAgents/ice-client.plist' \
      <"$work/service"
    change 'the launch agent'
  }
fi
if [ -z "$start" ]; then
  say 'installed; the client enrols at its first start'
  exit 0
fi

# --- enrol, start, wait ---

client() { as_user "$program/bin/ice-client" "$@" --state-dir "$state" </dev/null; }
report() { client status --json 2>/dev/null | grep -q "$1"; } # of one line of the object
late() { [ "$(date +%s)" -ge "$deadline" ]; }

deadline=$(($(date +%s) + wait))
if [ ! -s "$state/token" ] && ! report '"running": true'; then
  # The proxy of the service, which reads this file itself.
  for name in HTTPS_PROXY NO_PROXY; do
    value=$(sed -n "s/^$name=//p" "$settings/environment" 2>/dev/null | tail -n 1)
    if [ -n "$value" ]; then export "$name=$value"; fi
  done
  # Not by the service: only `enrol` can be given a user, which the client then remembers.
  set -- --gateway "$gateway" --enrolment-key-file "$key"
  if [ -n "$user" ]; then set -- "$@" --user "$user"; fi
  if [ -n "$ca_file" ]; then set -- "$@" --ca-file "$settings/ca.pem"; fi
  case " $options " in *' --insecure '*) set -- "$@" --insecure ;; esac
  # Not as_user: its shell would stand between the signal below and the client.
  # shellcheck disable=SC2086
  (cd / && exec $become "$program/bin/ice-client" enrol "$@" --state-dir "$state") </dev/null >"$work/enrol" 2>&1 &
  enrolling=$!
  ended=1
  while kill -0 "$enrolling" 2>/dev/null; do
    if late || report '"enrolment": "'; then
      ended=
      kill "$enrolling" 2>/dev/null || :
      break
    fi
    sleep 1
  done
  status=0
  wait "$enrolling" 2>/dev/null || status=$? # the shell would tell of the signal
  if [ -n "$ended" ] && [ "$status" -ne 0 ]; then
    [ "$status" -eq 3 ] || status=1
    fail "$status" "not enrolled: $(tail -n 1 "$work/enrol")"
  fi
  if [ "$status" -eq 0 ]; then change 'enrolled this machine'; fi
fi

if [ "$system" = Linux ]; then
  if [ -n "$changed" ]; then
    systemctl daemon-reload
    systemctl restart ice-client
  else
    systemctl start ice-client
  fi
else
  agent=gui/$uid
  launchctl print "$agent" >/dev/null 2>&1 || fail 5 "$run_as is not logged in: the client starts at the next login"
  if [ -n "$changed" ]; then launchctl bootout "$agent/ice-client" 2>/dev/null || :; fi
  launchctl print "$agent/ice-client" >/dev/null 2>&1 ||
    launchctl bootstrap "$agent" "$(as_user sh -c 'echo ~')/Library/LaunchAgents/ice-client.plist"
  launchctl kickstart "$agent/ice-client" >/dev/null
fi

refused=0
while :; do
  status=0
  client status >"$work/output" 2>&1 || status=$?
  if [ "$status" -eq 0 ]; then break; fi
  # A client that has just been started has not yet replaced what the last one wrote.
  if [ "$status" -eq 3 ]; then refused=$((refused + 1)); else refused=0; fi
  if [ "$refused" -ge 5 ]; then
    fail 3 "refused: $(tail -n 1 "$work/output")"
  elif report '"enrolment": "'; then
    fail 4 'waits for an admin to approve this machine'
  elif late; then
    cat "$work/output" >&2
    fail 5 "not connected after $wait s; the client goes on trying"
  fi
  sleep 2
done
if [ -n "$remove_key" ] && [ -e "$key" ]; then
  rm -f "$key"
  change 'deleted the enrolment key'
fi
if [ -n "$changed" ]; then say connected; else say 'connected; nothing was changed'; fi
