package command

import (
	"flag"
	"fmt"
	"io"
	"strings"
)

// shells are the shells whose completion is known.
const shells = "bash, zsh or fish"

// completion writes the script that makes a shell complete the program's command lines.
func (p *Program) completion(args []string, w io.Writer) error {
	if len(args) == 1 && (args[0] == "-h" || args[0] == "-help" || args[0] == "--help") {
		_, err := fmt.Fprintf(w, completionHelp, p.Name)
		return err
	}
	if len(args) != 1 {
		return usagef("completion: want one shell: %s", shells)
	}
	script := map[string]func(io.Writer) error{"bash": p.bash, "zsh": p.zsh, "fish": p.fish}[args[0]]
	if script == nil {
		return usagef("completion: unknown shell %q; want %s", args[0], shells)
	}
	return script(w)
}

const completionHelp = `Usage: %[1]s completion bash|zsh|fish

Prints a script that makes the shell complete command lines. In the running shell:

  bash:  source <(%[1]s completion bash)
  zsh:   source <(%[1]s completion zsh)    # after autoload -U compinit; compinit
  fish:  %[1]s completion fish | source

For all shells of a user, write it to the file in which the shell looks for it:

  bash:  ~/.local/share/bash-completion/completions/%[1]s
  zsh:   _%[1]s in a directory of $fpath
  fish:  ~/.config/fish/completions/%[1]s.fish
`

// builtin are the subcommands that every program has.
var builtin = []Command{
	{Name: "completion", Summary: "print the script for completion in a shell"},
	{Name: "version", Summary: "print the version"},
}

// eachCommand calls f for each subcommand with its flags.
func (p *Program) eachCommand(f func(Command, []*flag.Flag)) error {
	for _, c := range p.Commands {
		d, err := p.describe(c)
		if err != nil {
			return fmt.Errorf("describe %s: %w", c.Name, err)
		}
		f(c, d.flags)
	}
	for _, c := range builtin {
		f(c, nil)
	}
	return nil
}

func (p *Program) bash(w io.Writer) error {
	var names []string
	var cases strings.Builder
	err := p.eachCommand(func(c Command, flags []*flag.Flag) {
		names = append(names, c.Name)
		var words []string
		for _, f := range flags {
			words = append(words, dashed(f))
		}
		if c.Name == "completion" {
			words = []string{"bash", "zsh", "fish"}
		}
		fmt.Fprintf(&cases, "\t%s) words=%q ;;\n", c.Name, strings.Join(words, " "))
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, `# bash completion for %[1]s
_%[1]s() {
	local words=
	if [ "$COMP_CWORD" -eq 1 ]; then
		words=%[2]q
	else
		case ${COMP_WORDS[1]} in
%[3]s		esac
	fi
	mapfile -t COMPREPLY < <(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}")
}
complete -o default -F _%[1]s %[1]s
`, p.Name, strings.Join(names, " "), strings.ReplaceAll(cases.String(), "\t", "\t\t"))
	return err
}

func (p *Program) zsh(w io.Writer) error {
	var commands, cases strings.Builder
	err := p.eachCommand(func(c Command, flags []*flag.Flag) {
		fmt.Fprintf(&commands, "\t\t%s\n", quoted(c.Name+":"+c.Summary))
		fmt.Fprintf(&cases, "\t%s) _arguments", c.Name)
		for _, f := range flags {
			fmt.Fprintf(&cases, " \\\n\t\t%s", quoted(zshSpec(f)))
		}
		if c.Name == "completion" {
			fmt.Fprintf(&cases, " '1:shell:(bash zsh fish)'")
		} else {
			fmt.Fprintf(&cases, " '*:operand:_files'")
		}
		fmt.Fprintf(&cases, " ;;\n")
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, `#compdef %[1]s
_%[1]s() {
	local -a commands=(
%[2]s	)
	if (( CURRENT == 2 )); then
		_describe command commands
		return
	fi
	shift words
	(( CURRENT-- ))
	case $words[1] in
%[3]s	esac
}
if [ "$funcstack[1]" = _%[1]s ]; then
	_%[1]s "$@"
else
	compdef _%[1]s %[1]s
fi
`, p.Name, commands.String(), cases.String())
	return err
}

// zshSpec returns what _arguments takes for a flag.
func zshSpec(f *flag.Flag) string {
	value, usage := flag.UnquoteUsage(f)
	text := strings.NewReplacer("[", "(", "]", ")", ":", `\:`).Replace(summary(usage))
	if value == "" {
		return fmt.Sprintf("%s[%s]", dashed(f), text)
	}
	return fmt.Sprintf("%s=[%s]:%s:_files", dashed(f), text, strings.ReplaceAll(value, ":", " "))
}

func (p *Program) fish(w io.Writer) error {
	fmt.Fprintf(w, "# fish completion for %s\n", p.Name)
	return p.eachCommand(func(c Command, flags []*flag.Flag) {
		fmt.Fprintf(w, "complete -c %s -n __fish_use_subcommand -f -a %s -d %s\n", p.Name, c.Name, quoted(c.Summary))
		seen := quoted("__fish_seen_subcommand_from " + c.Name)
		for _, f := range flags {
			value, usage := flag.UnquoteUsage(f)
			long, takes := "-l", ""
			if len(f.Name) == 1 {
				long = "-s"
			}
			if value != "" {
				takes = " -r"
			}
			fmt.Fprintf(w, "complete -c %s -n %s %s %s%s -d %s\n", p.Name, seen, long, f.Name, takes, quoted(summary(usage)))
		}
		if c.Name == "completion" {
			fmt.Fprintf(w, "complete -c %s -n %s -f -a 'bash zsh fish'\n", p.Name, seen)
		}
	})
}

// dashed returns a flag as users write it.
func dashed(f *flag.Flag) string {
	if len(f.Name) == 1 {
		return "-" + f.Name
	}
	return "--" + f.Name
}

// summary returns the first part of a flag's help text.
func summary(usage string) string {
	usage, _, _ = strings.Cut(usage, "\n")
	usage, _, _ = strings.Cut(usage, "; ")
	return usage
}

// quoted quotes a word for a shell.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
