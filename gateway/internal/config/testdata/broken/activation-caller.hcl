extension "x" {
  command = "/bin/true"
}
driver "native" {}
driver "acme" {
  base = "native"
  bind "x" {
    activation = "on_request"
  }
}
activation "x" {
  when {
    workspace = "team-[a"
    caller    = ["uid:1000", "cert:agent-*", "*", "1000", "uid:alice"]
  }
}
