# debian-apt.sh, to be sourced: debian_apt DIR SUITE ARCH sets up an APT in DIR that has
# the lists of that Debian release (or several, separated by blanks) and architecture and
# no others, from the same mirror as this system's packages, and makes apt-get and
# apt-cache use it from then on.
# With a fourth argument, "security", it includes the security updates if they are
# available. The system's own lists are left alone; its proxies and similar settings
# stay in force.

# debian_repository LABEL: the repository of this system's packages with that label.
debian_repository() {
	apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Label: $1" | sed -n 1p
}

debian_apt() {
	local dir=$1 suite=$2 arch=$3 security=${4:-}
	local keys=/usr/share/keyrings/debian-archive-keyring.gpg uri
	uri=$(debian_repository Debian)
	if [ -z "$uri" ] && [ "$(id -u)" = 0 ]; then
		apt-get update -q # there may be no lists yet
		uri=$(debian_repository Debian)
	fi
	if [ -z "$uri" ]; then
		echo "APT has no lists of a Debian mirror: run 'apt-get update' as root, on a Debian" >&2
		return 1
	fi
	if [ -n "$security" ]; then
		security=$(debian_repository Debian-Security)
	fi

	mkdir -p "$dir"/{lists,cache}
	: >"$dir/status"
	cat >"$dir/apt.conf" <<-CONF
		APT::Architecture "$arch";
		APT::Architectures { "$arch"; };
		APT::Sandbox::User "root"; // another user may not write here
		Dir::Etc::SourceList "$dir/sources.list";
		Dir::Etc::SourceParts "/dev/null";
		Dir::Etc::Preferences "/dev/null";
		Dir::Etc::PreferencesParts "/dev/null";
		Dir::State "$dir";
		Dir::State::Lists "$dir/lists";
		Dir::State::Status "$dir/status";
		Dir::Cache "$dir/cache";
		Acquire::Languages "none";
	CONF
	export APT_CONFIG=$dir/apt.conf
	local from="arch=$arch signed-by=$keys"
	if [ -n "$security" ]; then
		printf 'deb [%s] %s %s main\n' "$from" "$uri" "$suite" "$from" "$security" "$suite-security" >"$dir/sources.list"
		if apt-get update -q; then
			return
		fi
		echo "$suite for $arch: the security updates cannot be had from this mirror; going on without" >&2
	fi
	for suite in $suite; do
		printf 'deb [%s] %s %s main\n' "$from" "$uri" "$suite"
	done >"$dir/sources.list"
	apt-get update -q
}
