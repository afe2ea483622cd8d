# SPDX-License-Identifier: Apache-2.0
# Completion of moectl for bash. Commands and options are those of --help. Nothing here starts the
# service: while it does not run, models are the files of its folder.

_moectl_active() {
    systemctl -q is-active moed.service 2>/dev/null || systemctl -q --user is-active moed.service 2>/dev/null
}

_moectl_models() {
    local f

    if _moectl_active; then
        moectl list -q 2>/dev/null | sed 's/  .*//'
        return
    fi
    for f in "${MOECTL_MODELS:-/var/lib/moed/models}"/*.gguf; do
        f=${f##*/}
        case $f in
        '*.gguf' | mmproj-* | mtp-*) ;;
        *-00001-of-?????.gguf) echo "${f%-00001-of-?????.gguf}" ;;
        *-?????-of-?????.gguf) ;;
        *) echo "${f%.gguf}" ;;
        esac
    done
}

_moectl_use_cases() {
    local f

    for f in {/etc,/run,/usr/local/lib,/usr/lib}/moed/use-cases.d/*.conf; do
        f=${f##*/}
        [[ $f == '*.conf' ]] || echo "${f%.conf}"
    done
}

_moectl_jobs() {
    _moectl_active && moectl top --once 2>/dev/null | sed -n 's/^ *\([0-9][0-9]*\) .*/\1/p'
}

_moectl_methods() {
    _moectl_active && moectl api-info 2>/dev/null | sed -n 's/^\([a-z.]*\) {.*/\1/p'
}

# Is $1 an option whose argument is the next word?
_moectl_takes_word() {
    [[ $1 == -[fn] ]] || { [[ $1 == --[a-z]* ]] && moectl --help | grep -q -e "$1 [A-Z]"; }
}

# Those of the words of $1, one a line, that begin with $2.
_moectl_offer() {
    local IFS=$'\n' word

    COMPREPLY=()
    for word in $1; do
        [[ $word == "$2"* ]] && COMPREPLY+=("$(printf %q "$word")")
    done
}

_moectl() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} verb='' i

    # "--json=short" comes as three words.
    if [[ $cur == '=' ]]; then
        cur=''
    elif [[ $prev == '=' ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    case $prev in
    --model) _moectl_offer "$(_moectl_models)" "$cur" && return ;;
    --json) _moectl_offer $'short\npretty\noff' "$cur" && return ;;
    --priority) _moectl_offer $'interactive\ndefault\nbackground' "$cur" && return ;;
    --overflow) _moectl_offer $'drop-oldest\nerror' "$cur" && return ;;
    --mode) _moectl_offer $'reference\nreflink\ncopy' "$cur" && return ;;
    -f | --file | --socket | --svg)
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        return
        ;;
    esac
    if [[ $cur == -* ]]; then
        _moectl_offer "$(moectl --help | grep -oE -- '--[a-z][a-z-]*' | sort -u)" "$cur"
        return
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        if [[ ${COMP_WORDS[i]} == [a-z]* && ${COMP_WORDS[i - 1]} != '=' ]] &&
            ! _moectl_takes_word "${COMP_WORDS[i - 1]}"; then
            verb=${COMP_WORDS[i]}
            break
        fi
    done
    case $verb in
    '') _moectl_offer "$(moectl --help | sed -n 's/^  \([a-z][a-z-]*\) .*/\1/p')" "$cur" ;;
    show | load | unload | pin | unpin | wait | verify) _moectl_offer "$(_moectl_models)" "$cur" ;;
    use-case) _moectl_offer "$(_moectl_use_cases)" "$cur" ;;
    kill) _moectl_offer "$(_moectl_jobs)" "$cur" ;;
    call) _moectl_offer "$(_moectl_methods)" "$cur" ;;
    import)
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        ;;
    esac
}

complete -F _moectl moectl
