# SPDX-License-Identifier: Apache-2.0
# Completion of moectl for fish. Commands and options are those of --help. Nothing here starts the
# service: while it does not run, models are the files of its folder.

function __moectl_active
    systemctl -q is-active moed.service 2>/dev/null; or systemctl -q --user is-active moed.service 2>/dev/null
end

function __moectl_models
    if __moectl_active
        moectl list -q 2>/dev/null | string replace -r '  .*' ''
        return
    end
    set -l dir /var/lib/moed/models
    set -q MOECTL_MODELS; and set dir $MOECTL_MODELS
    for f in $dir/*.gguf
        set -l name (string replace -r '.*/' '' -- $f | string replace -r '\.gguf$' '')
        string match -qr '^(mmproj|mtp)-' -- $name; and continue
        if string match -qr -- '-\d{5}-of-\d{5}$' $name
            string match -qr -- '-00001-of-\d{5}$' $name; or continue
            set name (string replace -r -- '-00001-of-\d{5}$' '' $name)
        end
        echo $name
    end
end

function __moectl_use_cases
    for f in {/etc,/run,/usr/local/lib,/usr/lib}/moed/use-cases.d/*.conf
        string replace -r '.*/' '' -- $f | string replace -r '\.conf$' ''
    end
end

function __moectl_jobs
    __moectl_active; and moectl top --once 2>/dev/null | string replace -rf '^ *(\d+) .*' '$1'
end

function __moectl_methods
    __moectl_active; and moectl api-info 2>/dev/null | string replace -rf '^([a-z.]+) \{.*' '$1'
end

function __moectl_verbs
    moectl --help | awk '/^  [a-z]/ { print $1 "\t" substr($0, 24) }'
end

set -l with_model show load unload pin unpin wait verify

complete -c moectl -f
complete -c moectl -n __fish_use_subcommand -a '(__moectl_verbs)'
complete -c moectl -n "__fish_seen_subcommand_from $with_model" -a '(__moectl_models)'
complete -c moectl -n '__fish_seen_subcommand_from use-case' -a '(__moectl_use_cases)'
complete -c moectl -n '__fish_seen_subcommand_from kill' -a '(__moectl_jobs)'
complete -c moectl -n '__fish_seen_subcommand_from call' -a '(__moectl_methods)'
complete -c moectl -n '__fish_seen_subcommand_from import' -F
complete -c moectl -l model -x -a '(__moectl_models)'
complete -c moectl -l json -a 'short pretty off'
complete -c moectl -l priority -x -a 'interactive default background'
complete -c moectl -l overflow -x -a 'drop-oldest error'
complete -c moectl -l mode -x -a 'reference reflink copy'
complete -c moectl -s f -l file -r -F
complete -c moectl -l socket -r -F
complete -c moectl -l svg -r -F
for option in (moectl --help 2>/dev/null | string match -ra -- '--[a-z][a-z-]*' | string replace -- '--' '' | sort -u)
    contains $option model json priority overflow mode file socket svg
    or complete -c moectl -l $option
end
