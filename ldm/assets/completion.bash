# Completion of `ldm` and `python train.py`, written by `ldm completion`: keys, choices, verbs, options.
_ldm_keys="__KEYS__"
_ldm_choices="__CHOICES__"
_ldm_verbs="__VERBS__"
declare -A _ldm_words=(
__WORDS__
)

_ldm_settings() {  # of the word that is being typed: keys, or what can stand behind the "="
    local word=$1
    if [[ $word == *=* ]]; then
        COMPREPLY=($(compgen -W "$_ldm_choices" -- "$word"))
        COMPREPLY=("${COMPREPLY[@]#*=}")  # readline takes "=" for the end of a word
    else
        COMPREPLY=($(compgen -W "$_ldm_keys" -- "$word"))
    fi
}

_ldm() {
    local line=${COMP_LINE:0:COMP_POINT}
    local word=${line##* } words=($line)
    COMPREPLY=()
    if [[ ${words[0]##*/} == python* ]]; then
        [[ ${words[1]##*/} == train.py && $line == *train.py\ * ]] && _ldm_settings "$word"
    elif [[ ${#words[@]} == 1 || (${#words[@]} == 2 && -n $word) ]]; then
        COMPREPLY=($(compgen -W "$_ldm_verbs" -- "$word"))
    elif [[ $word == *=* && $word != -* ]]; then
        _ldm_settings "$word"
    else
        COMPREPLY=($(compgen -W "${_ldm_words[${words[1]}]}" -- "$word"))
        case ${words[1]} in
            __SETTERS__) [[ -n $word && ${#COMPREPLY[@]} == 0 ]] && _ldm_settings "$word" ;;
        esac
    fi
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2> /dev/null
    return 0
}

complete -o default -F _ldm ldm python python3
