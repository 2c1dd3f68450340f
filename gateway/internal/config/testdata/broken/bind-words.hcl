driver "native" {}
driver "acme" {
  base = "native"
  bind "x" {
    mode           = "enforced"
    failure_policy = "fail_opn"
    reconcile      = "auth"
    activation     = "always"
    phase "before_creat" {}
    grant {
      mutate = ["process.env"]
    }
  }
}
