"""CVXPY problems by MOSEK or Clarabel, polished and certified."""
